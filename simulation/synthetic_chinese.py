"""The Chinese words and sentences of the synthetic hospitals. All of it is our own."""

from __future__ import annotations

from simulation.synthetic_lexicon import Lexicon, Section, listed

_PARTS = {
    "severity": listed("急性、慢性、重度、轻度、复发性、进行性、晚期、难治性、早期、亚急性、持续性"),
    "cause": listed("病毒性、细菌性、真菌性、结核性、自身免疫性、酒精性、缺血性、药物性、糖尿病性"),
    "root": listed(
        "肾、肝、胃、结肠、胰腺、胆囊、关节、脑膜、支气管、心肌、骨、脾、咽、喉、甲状腺、前列腺、卵巢、乳腺、胸膜、食管"
    ),
    "finding": listed("炎、癌、狭窄、脓肿、梗死、出血、功能不全、纤维化、萎缩、囊肿、溃疡、结石、水肿、肿大"),
    "eponym": listed("凯勒、布雷维、哈洛、维拉、索伦、马切蒂、邓莫、彼得罗、奎兰、拉斯蒙"),
    "named": listed("病、综合征、麻痹"),
    "syllable": listed("阿、比、卡、德、非、格、依、洛、美、尼、奥、培、瑞、索、替、维、扎"),
    "drug": listed(
        "普利、沙坦、洛尔、他汀、康唑、西林、霉素、沙星、单抗、替尼、列汀、地平、昔洛韦、拉唑、司琼"
    ),
    "form": listed("片、胶囊、注射液、缓释片"),
    "approach": listed("腹腔镜下、急诊、择期、开放、机器人辅助、再次"),
    "surgery": listed("切除术、造口术、切开引流术、成形术、活检、镜检查、移植术、穿刺术"),
    "imaging": listed("CT、MRI、超声、造影、平扫"),
    "side": listed("左侧、右侧、双侧"),
    "position": listed("上段、下段、前壁、后壁、近端、远端、内侧、外侧"),
    "organ": listed(
        "肾、肺、股骨、胫骨、肱骨、卵巢、乳房、髋部、膝关节、肩部、踝部、小腿、大腿、腮腺、颞叶、额叶、颈动脉"
    ),
    "whole": listed("胃、胰腺、食管、十二指肠、膀胱、主动脉、气管、胆囊、空肠、前列腺、乙状结肠、子宫"),
    "amount": listed(
        "1、2、2.5、4、5、7.5、8、10、12.5、15、20、25、30、40、50、60、75、80、100、125、150、"
        "200、250、300、400、500、600、0.5、0.25"
    ),
    "measure": listed("mg、ml、毫克、毫升、片、mg/kg"),
}

_PATTERNS = {
    "Disease": (
        "{severity}{root}{finding}",
        "{root}{finding}",
        "{cause}{root}{finding}",
        "{severity}{cause}{root}{finding}",
        "{side}{organ}{finding}",
        "{eponym}{named}",
    ),
    "Drug": (
        "{syllable}{syllable}{drug}",
        "{syllable}{syllable}{drug}",
        "{syllable}{drug}",
        "{syllable}{syllable}{drug}{form}",
    ),
    "Procedure": (
        "{approach}{root}{surgery}",
        "{root}{surgery}",
        "{side}{organ}{imaging}",
        "{whole}{imaging}",
        "{side}{organ}{surgery}",
    ),
    "Anatomy": ("{side}{organ}", "{whole}{position}", "{side}{organ}{position}", "{organ}{position}"),
    "Dosage": ("{amount}{measure}",),
}

_COMMON = {
    "Disease": listed(
        "肺炎、高血压、哮喘、贫血、脓毒症、脑卒中、痛风、心房颤动、2型糖尿病、感冒、抑郁症、休克、冠心病"
    ),
    "Drug": listed("阿司匹林、肝素、胰岛素、二甲双胍、呋塞米、华法林、泼尼松、吗啡、铁剂、氯化钾、氧气"),
    "Procedure": listed("胸片、心电图、透析、肠镜、气管插管、腰椎穿刺、输血、血培养、导管置入"),
    "Anatomy": listed("腹部、胸部、肝脏、心脏、脾脏、颈部、皮肤、双肺、脊柱"),
    "Dosage": listed("1片、5mg、10mg、40mg、1g"),
}

_MEDICATIONS = (
    "{Drug} ~ {Dosage} ~ [每日一次|每日两次|睡前|每8小时]",
    "{Drug} ~ {Dosage} ~ [口服|静滴|皮下注射]",
    "{Drug} ~ {Dosage}",
    "{Drug} ~ [暂停|停用|同前]",
)
_LABS = (
    "血钾3.{d}mmol/L，血铁{n}umol/L，血氧饱和度{sat}%。",
    "肌酐{n}umol/L，血糖{d}.{d}mmol/L。",
    "血压{bp}mmHg，心率{hr}次/分，体温37.{d}℃。",
    "心电图导联V{d}示ST段压低{d}mm，情绪不抑郁。",
)

_SECTIONS = {
    "admission": (
        Section(
            headers=("主诉", "入院原因", "现病史"),
            templates=(
                "因[突发|反复]{Disease}[两|三|五]天入院。",
                "患者{age}岁，诊断为{Disease}合并{Disease}。",
                "{Anatomy}疼痛[两|三|五]天。",
                "由{doctor}转来行{Procedure}。",
                "上周<Disease:感冒>，仍咳嗽。",
                "双手发冷，无感冒药过敏。",
                "{date}由[卒中中心|肿瘤医院|哮喘门诊|心脏中心]转入。",
            ),
        ),
        Section(
            headers=("既往史", "病史", "过去史"),
            templates=(
                "既往有{Disease}，服用{Drug}{Dosage}。",
                "{year}年因{Disease}行{Procedure}。",
                "否认{Disease}、{Disease}病史。",
                "[父亲|母亲|姐姐]患{Disease}。",
                "对{Drug}过敏。",
                "长期<Disease:抑郁>，口服{Drug}。",
            ),
        ),
        Section(headers=("用药", "入院用药", "家庭用药"), templates=_MEDICATIONS, rows=True),
        Section(
            headers=("体格检查", "查体", "体检"),
            templates=("{Anatomy}压痛，无反跳痛。", "{Anatomy}未见异常，{Anatomy}肿胀。", *_LABS),
        ),
    ),
    "progress": (
        Section(
            headers=("主观", "病情", "夜间情况"),
            templates=(
                "患者诉{Anatomy}疼痛[减轻|加重]。",
                "夜间出现{Disease}，予{Drug}{Dosage}。",
                "无{Disease}，无{Disease}。",
                "家属在[心脏|肿瘤|卒中]病区陪护。",
            ),
        ),
        Section(headers=("客观", "检查", "化验"), templates=_LABS),
        Section(
            headers=("评估与计划", "诊疗计划", "处理"),
            templates=(
                "{Disease}：继续{Drug}{Dosage}。",
                "开始{Drug}{Dosage}，[每日一次|每日两次]，治疗{Disease}。",
                "明日行{Procedure}以排除{Disease}。",
                "{Drug}由{Dosage}加至{Dosage}。",
                "因{Disease}停用{Drug}。",
                "{doctor}查房，计划{date}出院。",
                "{Anatomy}不能除外{Disease}。",
            ),
        ),
    ),
    "discharge": (
        Section(
            headers=("住院经过", "诊疗经过", "小结"),
            templates=(
                "予{Drug}{Dosage}治疗{Disease}。",
                "{date}行{Procedure}，过程顺利。",
                "{Procedure}提示{Disease}。",
                "期间并发{Disease}，经{Procedure}后好转。",
                "由[胸痛中心|休克小组|哮喘门诊]转入本科。",
            ),
        ),
        Section(
            headers=("出院诊断", "诊断", "最后诊断"),
            templates=(
                "{Disease}",
                "{Disease} ~ [好转|稳定|治愈]",
                "{Disease}，{Procedure}后",
                "{Disease}伴{Disease}",
            ),
            rows=True,
        ),
        Section(headers=("出院带药", "带药", "出院用药"), templates=_MEDICATIONS, rows=True),
        Section(
            headers=("随访", "出院医嘱", "复诊"),
            templates=(
                "{date}到{doctor}门诊复诊，电话{phone}。",
                "[两|六]周后行{Procedure}。",
                "如{Anatomy}疼痛或出现{Disease}请返院。",
                "服用{Drug}{Dosage}至{date}。",
            ),
        ),
    ),
    "radiology": (
        Section(
            headers=("检查", "检查项目"),
            templates=("{Procedure}，{date}。", "{Procedure}，与{date}{Procedure}比较。"),
        ),
        Section(
            headers=("临床问题", "申请目的"),
            templates=("疑{Disease}。", "{Procedure}后复查{Disease}。", "{Anatomy}疼痛，除外{Disease}。"),
        ),
        Section(
            headers=("影像所见", "所见", "描述"),
            templates=(
                "{Anatomy}见{n}mm病灶。",
                "{Anatomy}及{Anatomy}未见异常。",
                "起搏导管尖端位于{Anatomy}。",
                "未见{Disease}，{Anatomy}完整。",
                "{Disease}累及{Anatomy}。",
                "<Anatomy:心脏>增大，心率影响扫描。",
            ),
        ),
        Section(
            headers=("印象", "结论", "诊断意见"),
            templates=(
                "{Disease}。",
                "未见{Disease}征象。",
                "考虑{Disease}，时间不明。",
                "建议{Procedure}，已告知{doctor}。",
            ),
        ),
    ),
    "pathology": (
        Section(
            headers=("送检", "标本", "来源"),
            templates=("{Anatomy}，经{Procedure}取得。", "甲：{Anatomy}；乙：{Anatomy}。"),
        ),
        Section(
            headers=("镜下所见", "镜检", "描述"),
            templates=(
                "{Anatomy}切片示{Disease}。",
                "{Anatomy}切缘未见{Disease}。",
                "符合{Disease}改变，未见{Disease}。",
                "铁染色阴性，皮肤标记距{n}mm。",
            ),
        ),
        Section(
            headers=("病理诊断", "诊断", "结论"),
            templates=(
                "{Anatomy}：{Disease}。",
                "({Anatomy}){Disease}。",
                "未见{Disease}。",
                "{Disease}，建议{Procedure}。",
            ),
        ),
    ),
    "nursing": (
        Section(
            headers=("护理记录", "交班", "护理"),
            templates=(
                "{time}因{Anatomy}疼痛予{Drug}{Dosage}。",
                "{time}拒服{Drug}{Dosage}。",
                "{Anatomy}换药，冷敷后缓解。",
                "{time}{Procedure}后返回病房，嗜睡。",
                "观察有无{Disease}，未见。",
                "{Drug}以{Dosage}泵入。",
                "尿量{n}ml，体重{n}kg，心电监护导联已更换。",
                "准备{Procedure}，{doctor}已签署同意书。",
            ),
        ),
        Section(headers=("生命体征", "观察", "监测"), templates=_LABS),
        Section(headers=("本班用药", "给药记录", "执行医嘱"), templates=_MEDICATIONS, rows=True),
    ),
}

CHINESE = Lexicon(
    language="zh",
    locale="zh_CN",
    joiner="",
    parts=_PARTS,
    patterns=_PATTERNS,
    common=_COMMON,
    sections=_SECTIONS,
    titles={
        "admission": "入院记录",
        "discharge": "出院小结",
        "nursing": "护理记录单",
        "pathology": "病理报告",
        "progress": "病程记录",
        "radiology": "影像报告",
    },
    shorthand={
        "左侧": "左",
        "右侧": "右",
        "疼痛": "痛",
        "患者": "病人",
        "诊断为": "诊为",
        "每日一次": "qd",
        "每日两次": "bid",
        "未见异常": "(-)",
        "入院": "住院",
        "服用": "口服",
        "治疗": "治",
        "明日": "次日",
    },
    confusions={
        "症": "证",
        "像": "象",
        "震": "振",
        "坐": "座",
        "末": "未",
        "疼": "痛",
        "患": "换",
        "复": "覆",
        "行": "性",
    },
    date_formats=("%Y年%m月%d日", "%Y-%m-%d", "%Y.%m.%d", "%m月%d日", "%y/%m/%d"),
    identity=(
        "姓名:{name} 病案号:{mrn} 日期:{date}",
        "{name}，{age}岁，住院号{mrn}，{date}，{doctor}",
        "患者{name} 出生{birth} ID{mrn}",
        "{date} {mrn} {name}",
    ),
    namesakes=("石", "冷", "心", "骨", "肖", "痛"),
)
