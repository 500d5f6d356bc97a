"""The words and sentences of the synthetic *public* corpus, in English and Chinese. All of it is our own.

No list of mention heads, roots, organs, endings or units is shared with the hospitals, and every mention
ends or begins with a word of these lists, so no public mention can equal a mention of any hospital or of
devel or test. A test asserts this over generated corpora.
"""

from __future__ import annotations

from simulation.synthetic_lexicon import Lexicon, Section, listed

_ENGLISH_SECTIONS = {
    "admission": (
        Section(
            headers=("Case", "Presentation", "The Patient"),
            templates=(
                "This case report describes {Disease} in a {age}-year-old.",
                "The patient was found to have {Disease} involving the {Anatomy}.",
                "Previous {Procedure} had been performed for {Disease}.",
                "The {Anatomy} appeared swollen and the {Anatomy} was tender.",
                "There was neither {Disease} nor {Disease}.",
                "A brother suffered from {Disease}.",
                "She worked at the [Malaria Institute|Epilepsy Society|Face Clinic] until {year}.",
            ),
        ),
        Section(
            headers=("Treatment", "Management", "Therapy"),
            templates=(
                "Therapy consisted of {Drug} at a dose of {Dosage}.",
                "{Drug} ({Dosage}) was substituted for {Drug}.",
                "The author {doctor} reports no adverse reaction to {Drug}.",
                "The dose of {Drug} was raised to {Dosage}.",
                "{Procedure} was scheduled after {Drug} had been withdrawn.",
                "Lithium level {n} and quinine level {d} were acceptable.",
            ),
        ),
        Section(
            headers=("Prescriptions", "Formulary"),
            templates=(
                "{Drug} ~ {Dosage} ~ [every morning|weekly|as needed]",
                "{Drug} ~ {Dosage}",
                "{Drug} ~ discontinued",
            ),
            rows=True,
        ),
    ),
    "radiology": (
        Section(
            headers=("Imaging", "Figure"),
            templates=(
                "{Procedure} demonstrated {Disease}.",
                "On {Procedure} the {Anatomy} could not be identified.",
                "A region of {n} pixels near the {Anatomy} was measured.",
                "Absence of {Disease} was confirmed by {Procedure}.",
                "Arrows point to the {Anatomy} and to the {Anatomy}.",
                "The {Anatomy} is displaced by {Disease}.",
                "{Procedure}, performed on {date}.",
            ),
        ),
        Section(
            headers=("Interpretation", "Caption"),
            templates=(
                "{Disease} was considered.",
                "{Anatomy} with {Disease}.",
                "These images exclude {Disease}.",
                "A second {Procedure} was advised by {doctor}.",
            ),
        ),
    ),
    "discharge": (
        Section(
            headers=("Outcome", "Discussion"),
            templates=(
                "At {n} months there was complete remission of {Disease}.",
                "We believe that {Drug} prevents {Disease}.",
                "The cohort of {n} people received {Dosage} of {Drug}.",
                "Both {Disease} and {Disease} are rare; see the review by {name}.",
                "Surgeons may prefer {Procedure} to {Procedure}.",
                "The study was carried out at {n} centres and took {d} years.",
                "Hb {n} g/L and {hr} beats per minute were recorded.",
                "We thank the nurses of the face and pelvis study group.",
            ),
        ),
        Section(
            headers=("Keywords", "Index Terms"),
            templates=("{Disease}", "{Procedure}", "{Drug}", "{Disease}; {Procedure}", "{Anatomy}"),
            rows=True,
        ),
    ),
}

PUBLIC_ENGLISH = Lexicon(
    language="en",
    locale="en_GB",
    joiner=" ",
    parts={
        "degree": listed(
            "intermittent, longstanding, congenital, idiopathic, juvenile, diffuse, focal, metastatic, "
            "moderate, transient, relapsing, occult, stable, massive, latent, ruptured"
        ),
        "origin": listed("parasitic, hereditary, traumatic, toxic, allergic, septic, neurogenic, surgical"),
        "region": listed(
            "intestinal, spinal, ocular, adrenal, nasal, dental, pelvic, ureteral, tracheal, scrotal, "
            "pituitary, ventricular, coronary, cutaneous, duodenal, inguinal, umbilical, optic, vaginal"
        ),
        "trouble": listed(
            "tumor, stricture, hernia, inflammation, failure, lesion, infection, injury, disorder, "
            "degeneration, sarcoma, dystrophy, adenoma, prolapse, arrhythmia, congestion, calculi, polyp"
        ),
        "stem": listed(
            "tonsill, append, sinus, phleb, blephar, kerat, chondr, enter, ot, py, cervic, uter, conjunctiv, "
            "gingiv, burs, myos, retin, ureter, vagin, cyt"
        ),
        "ending": listed("oiditis, algia, emia, omalacia, orrhea, ismus, oplegia, ectasia, ospasm"),
        "opening": listed(
            "ab, cly, em, gri, hal, jo, nev, pra, quin, sti, tom, wex, ac, bri, cal, dox, fos, lis, met, ril"
        ),
        "close": listed(
            "caine, profen, zepam, thiazide, cycline, dronate, zosin, fibrate, barbital, tropium, "
            "azine, parin, relin, gliflozin, terol, mustine, platin, cisteine"
        ),
        "eponymous": listed("Abernethy, Castell, Dressel, Engelmann, Fairbank, Gorlanski, Hirano, Lindqvist"),
        "kind": listed("disorder, malformation, sign complex"),
        "method": listed(
            "scintigraphy, transplantation, radiotherapy, arthroplasty, repair, embolization, screening, "
            "puncture, dilation, fixation, irrigation, excision, suture"
        ),
        "deed": listed("ectomies, ography, oscopic inspection, orrhaphy, opexy, ocentesis"),
        "flank": listed("left, right, upper, lower, outer, inner, anterior, posterior, proximal, distal"),
        "member": listed(
            "elbow, wrist, jaw, eyelid, cheek, heel, forearm, nostril, toe, thumb, eardrum, palate, groin, "
            "flank, knuckle, kneecap, collarbone, pupil, tonsil, buttock"
        ),
        "viscus": listed("thymus, ileum, rectum, cornea, urethra, larynx, appendix, cecum, retina, pharynx"),
        "count": listed(
            "3, 6, 9, 18, 35, 45, 70, 90, 110, 175, 220, 350, 450, 1000, 1.5, 0.1, 0.75, 5, 10, 20, 50, 100"
        ),
        "unit": listed("mcg, units, IU, capsules, grams, micrograms, ng, cc, mmol, ampoules, mcg/kg, g/day"),
    },
    patterns={
        "Disease": (
            "{degree} {region} {trouble}",
            "{region} {trouble}",
            "{degree} {stem}{ending}",
            "{origin} {stem}{ending}",
            "{origin} {region} {trouble}",
            "{trouble} of the {flank} {member}",
            "{eponymous} {kind}",
        ),
        "Drug": (
            "{opening}{opening}{close}",
            "{opening}{opening}{close}",
            "{opening}{close}",
            "{opening}{close} maleate",
        ),
        "Procedure": (
            "{region} {method}",
            "{stem}{deed}",
            "{degree} {region} {method}",
            "{method} of the {flank} {member}",
            "{method} of the {viscus}",
        ),
        "Anatomy": (
            "{flank} {member}",
            "{flank} {flank} {member}",
            "{flank} {viscus}",
            "{flank} border of the {viscus}",
        ),
        "Dosage": ("{count} {unit}",),
    },
    common={
        "Disease": listed("tuberculosis, malaria, epilepsy, leukemia, hepatitis B, measles"),
        "Drug": listed("ibuprofen, codeine, lithium, penicillin G, quinine"),
        "Procedure": listed("appendectomy, mammography, vaccination, chemotherapy"),
        "Anatomy": listed("face, tongue, pelvis, scalp"),
        "Dosage": listed("100 IU, one capsule"),
    },
    sections=_ENGLISH_SECTIONS,
    titles={"admission": "Case Report", "radiology": "Figure Legend", "discharge": "Follow-up of a Case"},
    shorthand={"for example": "e.g."},
    confusions={},
    date_formats=("%B %Y", "%d %B %Y"),
    identity=("By {name}, {date}", "{name} et al., {date}"),
    namesakes=("Hernia", "Ward"),
)

_CHINESE_SECTIONS = {
    "admission": (
        Section(
            headers=("病例", "病例介绍"),
            templates=(
                "本文报道一例{age}岁{Disease}患者。",
                "{Disease}侵犯{Anatomy}。",
                "曾接受{Procedure}。",
                "给予{Drug}，剂量为{Dosage}。",
                "{Drug}({Dosage})替代{Drug}。",
                "既无{Disease}，也无{Disease}。",
                "{Anatomy}与{Anatomy}触痛。",
                "曾在[疟疾研究所|癫痫协会|骨盆中心]工作。",
            ),
        ),
        Section(
            headers=("处方", "药物"),
            templates=("{Drug} ~ {Dosage} ~ [每晨|每周|必要时]", "{Drug} ~ {Dosage}", "{Drug} ~ 中止"),
            rows=True,
        ),
    ),
    "radiology": (
        Section(
            headers=("图像", "图注"),
            templates=(
                "{Procedure}显示{Disease}。",
                "{Procedure}中{Anatomy}不可辨认。",
                "箭头示{Anatomy}及{Anatomy}。",
                "图像可排除{Disease}。",
                "{Anatomy}附近测得{n}像素。",
            ),
        ),
    ),
    "discharge": (
        Section(
            headers=("讨论", "结局"),
            templates=(
                "随访{n}月，{Disease}未再发生。",
                "{name}等认为{Drug}可预防{Disease}。",
                "{Procedure}优于{Procedure}。",
                "{Anatomy}恢复正常。",
                "{n}名受试者接受{Dosage}的{Drug}。",
                "研究历时{d}年，共{n}家单位参加。",
            ),
        ),
    ),
}

PUBLIC_CHINESE = Lexicon(
    language="zh",
    locale="zh_TW",
    joiner="",
    parts={
        "degree": listed("先天性, 特发性, 弥漫性, 转移性, 局灶性"),
        "region": listed("眼睑, 鼻窦, 牙周, 盆腔, 阑尾, 扁桃体, 脊髓, 角膜, 小肠"),
        "trouble": listed("肉瘤, 疝, 损伤, 感染, 变性, 畸形, 衰竭, 肿瘤"),
        "opening": listed("安, 博, 西, 丁, 恩, 戈, 海, 乔, 昆, 托"),
        "close": listed("卡因, 洛芬, 西泮, 噻嗪, 环素, 膦酸, 唑嗪, 贝特"),
        "method": listed("放射治疗, 修补术, 置换术, 栓塞术, 筛查, 显像"),
        "flank": listed("左, 右, 上, 下"),
        "member": listed("肘部, 腕部, 下颌, 眼睑, 面颊, 足跟, 前臂, 脚趾, 拇指, 上颚"),
        "count": listed("3, 6, 9, 18, 35, 45, 70, 90, 110, 175"),
        "unit": listed("单位, 微克, 粒, 国际单位, 丸"),
    },
    patterns={
        "Disease": ("{degree}{region}{trouble}", "{region}{trouble}", "{member}{trouble}"),
        "Drug": ("{opening}{opening}{close}", "{opening}{close}"),
        "Procedure": ("{region}{method}", "{member}{method}"),
        "Anatomy": ("{flank}{member}", "{flank}{flank}{member}"),
        "Dosage": ("{count}{unit}",),
    },
    common={
        "Disease": listed("肺结核, 疟疾, 癫痫, 白血病"),
        "Drug": listed("布洛芬, 可待因, 奎宁"),
        "Procedure": listed("疫苗接种, 化疗"),
        "Anatomy": listed("面部, 舌, 骨盆"),
        "Dosage": listed("一粒, 100单位"),
    },
    sections=_CHINESE_SECTIONS,
    titles={"admission": "病例报告", "radiology": "图说", "discharge": "病例随访"},
    shorthand={"例如": "如"},
    confusions={},
    date_formats=("%Y年%m月", "%Y年%m月%d日"),
    identity=("作者{name}，{date}",),
    namesakes=("卢", "白"),
)
