"""The English words of the synthetic hospitals. All of it is our own."""

from __future__ import annotations

from simulation.synthetic_english_notes import ENGLISH_SECTIONS
from simulation.synthetic_lexicon import Lexicon, listed

_PARTS = {
    "severity": listed(
        "acute, chronic, severe, mild, recurrent, progressive, advanced, refractory, early, "
        "subacute, persistent, decompensated, multifocal, incipient"
    ),
    "site": listed(
        "renal, hepatic, pulmonary, cerebral, gastric, biliary, pancreatic, splenic, thyroid, "
        "ovarian, uterine, cervical, lumbar, femoral, retinal, pleural, colonic, rectal, "
        "esophageal, laryngeal, prostatic, aortic, mitral, carotid"
    ),
    "finding": listed(
        "carcinoma, stenosis, abscess, infarction, hemorrhage, insufficiency, embolism, "
        "thrombosis, fibrosis, atrophy, cyst, ulcer, obstruction, perforation, edema, effusion, "
        "necrosis, aneurysm, dysplasia, ischemia, regurgitation, fracture"
    ),
    "cause": listed(
        "viral, bacterial, fungal, tuberculous, autoimmune, alcoholic, ischemic, drug-induced, "
        "diabetic, hypertensive, staphylococcal, radiation"
    ),
    "root": listed(
        "nephr, hepat, gastr, col, pancreat, cholecyst, arthr, dermat, encephal, mening, bronch, "
        "cardi, neur, oste, splen, laryng, pharyng, mast, vascul, prostat, pleur, thyroid"
    ),
    "ailment": listed("itis, opathy, osis, oma"),
    "eponym": listed(
        "Kellner, Ostrander, Brevik, Halloran, Takemori, Villard, Sorenfeld, Marchetti, Dunmore, "
        "Aldersey, Petrosyan, Quillan, Rasmund, Whitcombe"
    ),
    "named": listed("disease, syndrome, anemia, palsy"),
    "syllable": listed(
        "ba, cor, del, fen, gal, ilo, lor, mi, nar, ova, pel, rox, sil, tra, ur, ven, zal, ke, dru, mon"
    ),
    "drug": listed(
        "pril, sartan, olol, statin, conazole, cillin, mycin, floxacin, umab, tinib, gliptin, "
        "triptan, dipine, setron, lukast, ciclovir, prazole, oxetine"
    ),
    "salt": listed("sodium, hydrochloride, acetate, succinate, mesylate"),
    "brand": listed("ex, ora, ia, ant, yl, ero"),
    "approach": listed("laparoscopic, open, emergency, elective, robotic, repeat, partial, total"),
    "surgery": listed("ectomy, ostomy, otomy, oplasty, oscopy"),
    "act": listed(
        "biopsy, ultrasound, angiography, resection, bypass, stenting, drainage, ablation, "
        "lavage, catheterization, grafting, decompression"
    ),
    "imaging": listed("CT, MRI, ultrasound, radiograph, Doppler study, bone scan"),
    "side": listed("left, right, bilateral"),
    "position": listed("upper, lower, proximal, distal, anterior, posterior, medial, lateral, superior"),
    "organ": listed(
        "kidney, lung, femur, tibia, humerus, ovary, breast, hip, knee, shoulder, ankle, calf, "
        "thigh, adrenal gland, parotid gland, temporal lobe, frontal lobe, lower lobe, "
        "carotid artery, renal artery, femoral vein, radial artery"
    ),
    "whole": listed(
        "stomach, pancreas, esophagus, duodenum, bladder, aorta, trachea, sternum, gallbladder, "
        "jejunum, prostate, cerebellum, mandible, sigmoid colon, uterus"
    ),
    "amount": listed(
        "1, 2, 2.5, 4, 5, 7.5, 8, 10, 12.5, 15, 20, 25, 30, 40, 50, 60, 75, 80, 100, 125, 150, "
        "200, 250, 300, 400, 500, 600, 750, 800, 0.5, 0.25"
    ),
    "measure": listed("mg, mL, mg/kg, tablets, mEq, drops, mg/h"),
}

_PATTERNS = {
    "Disease": (
        "{severity} {site} {finding}",
        "{site} {finding}",
        "{severity} {root}{ailment}",
        "{cause} {root}{ailment}",
        "{cause} {site} {finding}",
        "{finding} of the {side} {organ}",
        "{eponym} {named}",
    ),
    "Drug": (
        "{syllable}{syllable}{drug}",
        "{syllable}{syllable}{drug}",
        "{syllable}{drug}",
        "{syllable}{syllable}{drug} {salt}",
        "{syllable}{syllable}{brand}",
    ),
    "Procedure": (
        "{approach} {root}{surgery}",
        "{root}{surgery}",
        "{site} {act}",
        "{approach} {site} {act}",
        "{imaging} of the {side} {organ}",
        "{imaging} of the {whole}",
    ),
    "Anatomy": (
        "{side} {organ}",
        "{position} {whole}",
        "{side} {position} {organ}",
        "{position} {organ}",
        "{position} aspect of the {whole}",
    ),
    "Dosage": ("{amount} {measure}",),
}

_COMMON = {
    "Disease": listed(
        "pneumonia, hypertension, asthma, COPD, CHF, anemia, sepsis, stroke, gout, migraine, "
        "CKD, GERD, atrial fibrillation, type 2 diabetes, delirium, RA, cold, depression, "
        "cancer, shock"
    ),
    "Drug": listed(
        "aspirin, heparin, insulin, metformin, furosemide, warfarin, prednisone, morphine, iron, "
        "potassium, vancomycin, oxygen, calcium"
    ),
    "Procedure": listed(
        "chest x-ray, ECG, dialysis, colonoscopy, echocardiogram, intubation, MRI, culture, "
        "lumbar puncture, transfusion"
    ),
    "Anatomy": listed("abdomen, chest, liver, heart, spleen, brain, neck, colon, lungs, spine, skin"),
    "Dosage": listed("1 tablet, two puffs, 5 mg, 10 mg, 40 mg, 1 g"),
}

ENGLISH = Lexicon(
    language="en",
    locale="en_US",
    joiner=" ",
    parts=_PARTS,
    patterns=_PATTERNS,
    common=_COMMON,
    sections=ENGLISH_SECTIONS,
    titles={
        "admission": "Admission Note",
        "discharge": "Discharge Summary",
        "nursing": "Nursing Record",
        "pathology": "Pathology Report",
        "progress": "Progress Note",
        "radiology": "Radiology Report",
    },
    shorthand={
        "with": "w/",
        "without": "w/o",
        "history of": "h/o",
        "History of": "H/o",
        "left": "L",
        "right": "R",
        "complains of": "c/o",
        "Complains of": "C/o",
        "status post": "s/p",
        "year-old": "yo",
        "bilateral": "b/l",
        "evidence of": "e/o",
        "fracture": "fx",
        "Treated for": "Tx for",
        "daily": "qd",
        "Underwent": "Had",
        "chronic": "chr.",
        "follow-up": "f/u",
        "tomorrow": "in am",
        "because of": "2/2",
    },
    confusions={},
    date_formats=("%m/%d/%Y", "%Y-%m-%d", "%d %b %Y", "%d.%m.%y", "%b %d, %Y"),
    identity=(
        "Patient: {name} | MRN {mrn} | {date}",
        "{name}, {age} y, MRN: {mrn}, seen {date} by {doctor}",
        "Name: {name}  DOB: {birth}  ID {mrn}",
        "{date} {mrn} {name}",
    ),
    namesakes=("Graves", "Stroke", "Payne", "Coldwell", "Gout", "Hart", "Legge", "Ironside"),
)
