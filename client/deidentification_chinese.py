"""Chinese, simplified characters, for which Presidio has nothing of its own: all of it is here."""

# A pattern is read as a whole, so it stands on one line however long.
# ruff: noqa: E501
from __future__ import annotations

import regex  # type: ignore[import-untyped]
from faker.providers.address.zh_CN import Provider as _Address
from faker.providers.person.zh_CN import Provider as _Person
from presidio_analyzer import Pattern, PatternRecognizer

from client.deidentification_patterns import LABELLED, SHAPED, LanguagePatterns, any_of
from client.phi import AGE, DATE, ID, LOCATION, ORGANIZATION, PERSON, PHONE

_SIGN = r"[ \t]*[:：]?[ \t]*"
_HAN = r"\p{Han}"
SURNAMES = tuple(sorted(set(_Person.last_names)))
_SURNAME = any_of([*SURNAMES, "欧阳", "司马", "上官", "诸葛", "东方", "皇甫"])
_TITLE = r"(?:医生|医师|主任|教授|护士长|护士|大夫|先生|女士|小姐|老师|院长)"
_BEFORE = r"(?<=^|[\s，。；：、,;:(（于在到至由从赴往转经该])"
_PROVINCE = any_of(
    name.removesuffix("省").removesuffix("市").removesuffix("自治区") for name in _Address.provinces
)
_AREA = r"(?:省|自治区|特别行政区|市|区|县|州|盟|旗|镇|乡|街道|路|街|大道|巷|弄|村|小区|花园|新村)"
_HOSPITAL = r"(?:医院|卫生院|卫生服务中心|卫生室|诊所|保健院|疗养院|医学院|大学|研究所)"
_TENS = r"[一二三四五六七八九]?十[一二三四五六七八九]?"

CHINESE = LanguagePatterns(
    code="zh",
    regions=("CN",),
    day_first=False,
    patterns={
        PERSON: (
            (
                rf"(?:姓\s*名|患者|病人|产妇|联系人|监护人|家属){_SIGN}(?<=[:：][ \t]*)\K{_HAN}{{1,4}}(?![{_HAN}])",
                LABELLED,
            ),
            (rf"(?:姓\s*名){_SIGN}\K{_SURNAME}(?:{_HAN}{{1,2}}|某{{1,2}})(?![{_HAN}])", LABELLED),
            (
                rf"(?:主治|主任|住院|经治|责任|值班|手术|主刀|报告|审核|记录)?(?:医师|医生|护士|者)(?:签名|签字)?[ \t]*[:：][ \t]*\K{_HAN}{{2,4}}(?![{_HAN}])",
                LABELLED,
            ),
            (rf"{_SURNAME}{_HAN}{{0,2}}?(?={_TITLE})", SHAPED),
            (
                rf"(?:患者|病人|患儿|产妇)\K{_SURNAME}(?:某{{1,2}}|{_HAN}{{1,2}}(?=[，,。；;、（( ]|$))",
                SHAPED,
            ),
        ),
        DATE: (
            (
                r"(?<!\d)(?:(?:19|20)\d\d|\d\d)[ ]?年[ ]?(?:0?[1-9]|1[0-2])[ ]?月(?:[ ]?(?:0?[1-9]|[12]\d|3[01])[ ]?[日号])?",
                SHAPED,
            ),
            (r"(?<![\d年])(?:0?[1-9]|1[0-2])月(?:0?[1-9]|[12]\d|3[01])[日号]", SHAPED),
            (r"(?<!\d)(?:19|20)\d\d[ ]?年(?![ ]?\d)", SHAPED),
        ),
        AGE: (
            (rf"年\s*龄{_SIGN}\K\d{{1,3}}[ ]?(?:岁|个月|月|天)?", LABELLED),
            (rf"(?<!\d)\d{{1,3}}[ ]?(?:周)?岁|{_TENS}[余多]?岁", LABELLED),
        ),
        PHONE: (
            (r"(?<!\d)(?:\+?86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}(?!\d)", SHAPED),
            (r"(?<!\d)(?:\(0\d{2,3}\)|0\d{2,3})[ -]?\d{7,8}(?!\d)", SHAPED),
            (rf"(?:电\s*话|手机|联系方式|传真)(?:号码?)?{_SIGN}\K[+(]?\d[\d ()-]{{5,17}}\d", LABELLED),
        ),
        ID: (
            (
                r"(?:病历号|病案号|住院号|门诊号|登记号|就诊号|标本号|检查号|影像号|条码号|医保号|医保卡号|社保号|床\s*号|身份证号?码?)"
                rf"{_SIGN}\K[A-Za-z]{{0,4}}[-]?\d[\dA-Za-z-]{{0,19}}",
                LABELLED,
            ),
        ),
        LOCATION: (
            (
                r"(?:家庭住址|现住址|户籍地址|联系地址|住\s*址|地\s*址|籍\s*贯|出生地|户口地)[ \t]*[:：][ \t]*\K[^\n，。；,;]{2,40}",
                LABELLED,
            ),
            (
                rf"{_PROVINCE}(?:(?!{_HOSPITAL}){_HAN}{{0,8}}?{_AREA}){{1,5}}(?:\d{{1,5}}号?(?:院|楼|栋|幢|单元|室|-|\d)*)?",
                SHAPED,
            ),
            (rf"{_PROVINCE}(?=人[，。,；])", SHAPED),
        ),
        ORGANIZATION: (
            (rf"{_PROVINCE}(?:(?![于在到至由从赴往转经])[{_HAN}\d]){{0,16}}?{_HOSPITAL}", SHAPED),
            (
                rf"{_BEFORE}(?!(?:我|本|外|某|当地|上级|下级|社区|基层|专科|综合)(?:院|{_HOSPITAL}))(?:(?![于在到至由从赴往转经]){_HAN}){{2,14}}?{_HOSPITAL}",
                SHAPED,
            ),
            (r"(?:工作单位|单位|就诊医院|送检单位)[ \t]*[:：][ \t]*\K[^\n，。；,;]{2,40}", LABELLED),
        ),
    },
)
"""Names by label, title or surname; dates, ages in digits or words, numbers by label, addresses, hospitals."""


class ResidentNumbers(PatternRecognizer):
    """The 18 characters of a resident's identity number (GB 11643-1999), by its check digit."""

    _WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)

    def __init__(self) -> None:
        super().__init__(
            supported_entity=ID,
            name="cn-resident-number",
            patterns=[Pattern("digits", r"(?<![\dA-Za-z])[1-9]\d{16}[\dXx](?![\dA-Za-z])", SHAPED)],
            global_regex_flags=regex.MULTILINE,
        )

    def validate_result(self, pattern_text: str) -> bool | None:
        """Return True if the check digit is right, and no opinion if not: a typing error is PHI too."""
        # GB 11643-1999, section 5.3: ISO 7064 MOD 11-2.
        total = sum(w * int(d) for w, d in zip(self._WEIGHTS, pattern_text[:17], strict=True))
        return True if "10X98765432"[total % 11] == pattern_text[17].upper() else None
