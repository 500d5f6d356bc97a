"""English: American and British forms."""

# A pattern is read as a whole, so it stands on one line however long.
# ruff: noqa: E501
from __future__ import annotations

from faker.providers.address.en_US import Provider as _Address

from client.deidentification_patterns import (
    CAPITALISED,
    CODE,
    LABELLED,
    SHAPED,
    LanguagePatterns,
    after,
    any_of,
)
from client.phi import AGE, DATE, ID, LOCATION, ORGANIZATION, PERSON, PHONE

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_MONTH = any_of([*MONTHS, *(rf"{month[:3]}\.?" for month in MONTHS), r"Sept\.?"])
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_YEAR = r"(?:19|20)\d\d(?![-/]?\d)"

_NAME_END = r"(?!(?:MRN|DOB|Date|Age|Sex|Ward|Room|Hospital|Clinic|Department|Tel|Phone|Fax|Email|MD|DO|RN|NP|PA|FRCS|MRCP)\b)"
_NAME = (
    rf"{_NAME_END}{CAPITALISED}(?:,?[ ](?:(?:de|van|von|der|la|bin|al)[ ])?{_NAME_END}{CAPITALISED}){{0,3}}"
)
_STREET = "Street St Avenue Ave Road Rd Boulevard Blvd Lane Ln Drive Dr Court Ct Place Pl Way Terrace Square Close Crescent"
_STATES = any_of(_Address.states)
_STATE_CODES = any_of(_Address.states_abbr)

ENGLISH = LanguagePatterns(
    code="en",
    regions=("US", "GB"),
    day_first=False,
    patterns={
        PERSON: (
            (
                after(
                    r"(?:patient|full |first |last |sur)?[ ]?name|patient|surname|attending(?: physician)?",
                    _NAME,
                ),
                LABELLED,
            ),
            (
                after(
                    r"(?:physician|surgeon|doctor|consultant|nurse|referred by|seen by|signed(?: by)?|cc)",
                    _NAME,
                ),
                LABELLED,
            ),
            (rf"\b(?:Dr|Mr|Mrs|Ms|Miss|Prof|Professor|Doctor|Nurse|Sister)\b\.?[ ]\K{_NAME}", LABELLED),
            (
                rf"\b{CAPITALISED}(?:[ ]{CAPITALISED}){{1,2}}(?=,?[ ](?:M\.?D|D\.?O|R\.?N|N\.?P|P\.?A|FRCS|MRCP)\b)",
                LABELLED,
            ),
        ),
        DATE: (
            (rf"\b{_MONTH}[ ]{_DAY}(?:,?[ ]{_YEAR})?\b", SHAPED),
            (rf"\b{_DAY}(?:[ ]of)?[ -]{_MONTH}(?:,?[ -](?:{_YEAR}|\d\d))?(?!\w)", SHAPED),
            (rf"\b{_MONTH}(?:[ ]of)?[ -]{_YEAR}\b", SHAPED),
            (rf"\b(?i:in|since|year|from|until|of|during)[ ]\K{_YEAR}\b", SHAPED),
        ),
        AGE: (
            (r"\b\d{1,3}(?=[ -]?(?:years?|yrs?|y/?o|months?|weeks?|days?)[ -](?:old|of age)\b)", LABELLED),
            (r"\b\d{1,3}(?=[ ]?(?:y/o|y\.o\.|yo\b|yr old))", LABELLED),
            (after("age(?:d)?", r"\d{1,3}\b", sign=r"(?:[ \t]*[:：][ \t]*|[ ])"), LABELLED),
            (
                r"\b(?i:ninety(?:-(?:one|two|three|four|five|six|seven|eight|nine))?)(?=[ -]years?[ -]old\b)",
                LABELLED,
            ),
        ),
        PHONE: (
            (
                after(
                    r"(?:tele)?phone|tel|fax|mobile|cell|pager|bleep|ext",
                    r"[+(]?\d[\d ()./-]{2,17}\d",
                    sign=r"\.?[ \t]*[:：#]?[ \t]*",
                ),
                LABELLED,
            ),
        ),
        ID: (
            (
                after(
                    r"(?:MRN|medical record(?: (?:number|no))?|hospital (?:number|no)|patient id|account(?: (?:number|no))?|"
                    r"accession(?: (?:number|no))?|NHS(?: (?:number|no))?|SSN|member id|policy(?: (?:number|no))?|"
                    r"case(?: (?:number|no))?|specimen(?: (?:number|no))?|licen[cs]e(?: (?:number|no))?)",
                    CODE,
                    sign=r"\.?[ \t]*[:：#]?[ \t]*",
                ),
                LABELLED,
            ),
        ),
        LOCATION: (
            (
                after(
                    r"(?:home )?address|residence|lives at|city|town|zip(?: code)?|post(?:al )?code",
                    r"[^\n;]{2,80}?(?=[.;\n]|$)",
                ),
                LABELLED,
            ),
            (rf"\b\d{{1,5}}[ ](?:{CAPITALISED}[ ]){{1,4}}{any_of(_STREET.split())}\b\.?", SHAPED),
            (
                rf"\b{CAPITALISED}(?:[ ]{CAPITALISED})?,[ ]{_STATE_CODES}(?:[ ]\d{{5}}(?:-\d{{4}})?)?\b",
                SHAPED,
            ),
            (rf"\b{_STATES}\b", SHAPED),
        ),
        ORGANIZATION: (
            (
                rf"\b(?:St\.?[ ])?(?:{CAPITALISED}[ ]){{1,4}}(?:Hospital|Infirmary|Clinic|(?:Medical|Health|Cancer)[ ](?:Center|Centre)|Hospice)\b",
                SHAPED,
            ),
        ),
    },
)
"""Names by label, title or degree; dates, ages, numbers by label, addresses, states, hospitals."""
