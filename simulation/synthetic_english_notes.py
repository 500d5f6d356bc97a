"""The English sentences of the synthetic hospitals, by note type and section. All of it is our own.

Words that are an entity in one sentence and none in the next (`cold`, `depression`, `discharge`, `lead`,
`iron`, `potassium`, `RA`, `heart`, ...) stand here on purpose: they are what a lookup cannot tell apart.
"""

from __future__ import annotations

from simulation.synthetic_lexicon import Section

_MEDICATIONS = (
    "{Drug} ~ {Dosage} ~ [daily|BID|TID|at night|q8h]",
    "{Drug} ~ {Dosage} ~ [oral|IV|PO|SC]",
    "{Drug} ~ {Dosage}",
    "{Drug} ~ [held|stopped|unchanged]",
    "<Drug:iron> ~ {Dosage} ~ with meals",
)
_LABS = (
    "Potassium 3.{d} mmol/L, calcium 2.{d} mmol/L, iron {n} umol/L.",
    "Creatinine 1.{d} mg/dL, glucose {n} mg/dL, calcium score {n}.",
    "Oxygen saturation {sat}% on room air, heart rate {hr}, BP {bp}.",
    "Liver enzymes [normal|twice the limit]; brain natriuretic peptide {n} pg/mL.",
    "ECG shows ST depression of {d} mm in lead [II|aVF|V4].",
)

ENGLISH_SECTIONS = {
    "admission": (
        Section(
            headers=("Chief Complaint", "Presenting Complaint", "CC", "Reason for Admission"),
            templates=(
                "[Presents|Admitted] with {Disease}.",
                "{age}-year-old [man|woman] with {Disease} and {Disease}.",
                "Brought in by ambulance for [worsening|new] {Disease}.",
                "Referred by {doctor} for {Procedure}.",
                "Complains of pain in the {Anatomy} for [two|three|five] days.",
                "Caught a <Disease:cold> last week and is still coughing.",
                "Cold hands and feet on arrival, cold sweats overnight.",
                "Sent from the [Stroke Unit|Cancer Centre|Asthma Clinic|Heart Institute] on {date}.",
            ),
        ),
        Section(
            headers=("Past Medical History", "PMH", "Background", "History"),
            templates=(
                "History of {Disease}, treated with {Drug} {Dosage}.",
                "Known {Disease}; underwent {Procedure} in {year}.",
                "No history of {Disease} or {Disease}.",
                "[Mother|Father|Sister] had {Disease}.",
                "Long-standing <Disease:depression>, takes {Drug}.",
                "Seen by the [diabetes|stroke|asthma|pneumonia] nurse in {year}.",
                "Allergic to {Drug}.",
                "Worked with paint, treated for <Disease:lead poisoning> in {year}.",
                "<Disease:RA> since {year}, on {Drug}.",
            ),
        ),
        Section(headers=("Home Medications", "Meds", "Medication List"), templates=_MEDICATIONS, rows=True),
        Section(
            headers=("Examination", "Physical Exam", "PE", "O/E"),
            templates=(
                "Tenderness over the {Anatomy}, no rebound.",
                "{Anatomy} unremarkable; swelling of the {Anatomy}.",
                "RA saturation {sat}%, BP {bp}, HR {hr}.",
                "Purulent <Disease:discharge> from the {Anatomy}.",
                *_LABS,
            ),
        ),
    ),
    "progress": (
        Section(
            headers=("Subjective", "S", "Overnight Events"),
            templates=(
                "[Feels better|No new complaints|Slept poorly]; pain in the {Anatomy} persists.",
                "Reports {Disease} overnight, given {Drug} {Dosage}.",
                "[Denies|No] {Disease}, [denies|no] {Disease}.",
                "Mood low, worried about <Disease:depression>.",
                "Room was cold, asked for blankets.",
                "Walked to the [heart|cancer|spine] unit lounge with family.",
            ),
        ),
        Section(headers=("Objective", "O", "Data"), templates=_LABS),
        Section(
            headers=("Assessment and Plan", "A/P", "Impression", "Plan"),
            templates=(
                "{Disease}: continue {Drug} {Dosage}.",
                "{Disease} is improving on {Drug}.",
                "Start {Drug} {Dosage} [daily|BID|now] for {Disease}.",
                "{Procedure} tomorrow to rule out {Disease}.",
                "Increase {Drug} from {Dosage} to {Dosage}.",
                "Stop {Drug} because of {Disease}.",
                "Replace <Drug:potassium> {Dosage} and recheck potassium in the morning.",
                "Lead clinician {doctor} will review; discharge planning on {date}.",
                "<Procedure:lead extraction> discussed, lead II tracing unchanged.",
                "Cannot exclude {Disease} in the {Anatomy}.",
            ),
        ),
    ),
    "discharge": (
        Section(
            headers=("Hospital Course", "Course", "Summary"),
            templates=(
                "Treated for {Disease} with {Drug} {Dosage}.",
                "Underwent {Procedure} on {date} without complication.",
                "{Procedure} showed {Disease}.",
                "Course complicated by {Disease}, resolved after {Procedure}.",
                "Wound clean, no <Disease:discharge>; discharge agreed with {doctor}.",
                "Transferred from the [Shock Trauma|Sepsis Response|Chest Pain] team on day {d}.",
                "No recurrence of {Disease} since {Procedure}.",
            ),
        ),
        Section(
            headers=("Discharge Diagnoses", "Diagnoses", "Final Diagnosis"),
            templates=(
                "{Disease}",
                "{Disease}, status post {Procedure}",
                "{Disease} ~ [active|stable|resolved]",
                "{Disease} with {Disease}",
                "<Disease:depression> ~ stable",
            ),
            rows=True,
        ),
        Section(
            headers=("Discharge Medications", "Meds on Discharge", "TTO"), templates=_MEDICATIONS, rows=True
        ),
        Section(
            headers=("Follow-up", "Appointments", "Instructions"),
            templates=(
                "Clinic with {doctor} on {date}, call {phone}.",
                "{Procedure} in [two|six] weeks, then see {doctor}.",
                "Return if pain in the {Anatomy} or signs of {Disease}.",
                "Take {Drug} {Dosage} until {date}.",
                "Keep the {Anatomy} dry after {Procedure}.",
                "Discharge letter sent to {doctor}; safety culture survey handed to family.",
            ),
        ),
    ),
    "radiology": (
        Section(
            headers=("Examination", "Study", "Exam"),
            templates=(
                "{Procedure}, {date}.",
                "{Procedure} with contrast, compared with {Procedure} of {date}.",
            ),
        ),
        Section(
            headers=("Indication", "Clinical Question", "Hx"),
            templates=(
                "Suspected {Disease}.",
                "Follow-up of {Disease} after {Procedure}.",
                "Pain in the {Anatomy}, evaluate for {Disease}.",
            ),
        ),
        Section(
            headers=("Findings", "Report", "Result"),
            templates=(
                "A {n} mm lesion is seen in the {Anatomy}.",
                "The {Anatomy} and {Anatomy} are normal.",
                "Mild depression of the skull contour beside the {Anatomy}.",
                "Pacing lead tip in the {Anatomy}, second lead intact.",
                "No {Disease}. The {Anatomy} is intact.",
                "{Disease} extending to the {Anatomy}.",
                "Radiotracer uptake cold in the {Anatomy}.",
                "Enlargement of the <Anatomy:heart>; heart rate limits timing.",
                "Stool throughout the <Anatomy:colon>.",
            ),
        ),
        Section(
            headers=("Impression", "Conclusion", "Opinion"),
            templates=(
                "{Disease}.",
                "No evidence of {Disease}.",
                "Findings suggest {Disease} of unclear age.",
                "Recommend {Procedure}; discussed with {doctor}.",
                "Likely {Disease}, less likely {Disease}.",
            ),
        ),
    ),
    "pathology": (
        Section(
            headers=("Specimen", "Material", "Source"),
            templates=(
                "{Anatomy}, obtained by {Procedure}.",
                "Part A: {Anatomy}; part B: {Anatomy}.",
                "Tissue from {Procedure} received cold in saline, {n} mm.",
            ),
        ),
        Section(
            headers=("Microscopy", "Microscopic Description", "Description"),
            templates=(
                "Sections of the {Anatomy} show {Disease}.",
                "Margins at the {Anatomy} are free of {Disease}.",
                "Central depression {d} mm deep, iron stain negative, calcium deposits absent.",
                "Changes in keeping with {Disease}, no {Disease} seen.",
                "Skin marker ink at {n} mm; <Anatomy:skin> otherwise normal.",
            ),
        ),
        Section(
            headers=("Diagnosis", "Final Diagnosis", "Conclusion"),
            templates=(
                "{Anatomy}: {Disease}.",
                "{Disease} in the {Anatomy}, {Procedure}.",
                "Negative for {Disease}.",
                "{Disease}; suggest {Procedure}.",
            ),
        ),
    ),
    "nursing": (
        Section(
            headers=("Nursing Note", "Shift Note", "Handover"),
            templates=(
                "Given {Drug} {Dosage} at {time} for pain in the {Anatomy}.",
                "{Drug} {Dosage} refused at {time}.",
                "Dressing on the {Anatomy} changed, clear <Disease:discharge> noted.",
                "Discharge bag packed, lead nurse {doctor} informed at {time}.",
                "Cold pack to the {Anatomy}, tolerated well.",
                "Back from {Procedure} at {time}, drowsy.",
                "Started on <Drug:oxygen> 2 L by mask at {time}; oxygen saturation {sat}%.",
                "Stool soft, urine {n} mL, weight {n} kg.",
                "Observed for {Disease}, none seen.",
                "Infusion of {Drug} running at {Dosage}.",
                "ECG leads repositioned, chest lead V{d} replaced.",
                "Prepared for {Procedure}, consent signed with {doctor}.",
            ),
        ),
        Section(headers=("Observations", "Vitals", "Obs"), templates=_LABS),
        Section(headers=("Given This Shift", "Drug Chart", "MAR"), templates=_MEDICATIONS, rows=True),
    ),
}
