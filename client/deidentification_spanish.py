"""Spanish: Spain's forms; written against the training half of MEDDOCAN, never against its development half."""

# A pattern is read as a whole, so it stands on one line however long.
# ruff: noqa: E501
from __future__ import annotations

from faker.providers.address.es_ES import Provider as _Address

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
    "enero",
    "febrero",
    "marzo",
    "abril",
    "mayo",
    "junio",
    "julio",
    "agosto",
    "septiembre",
    "octubre",
    "noviembre",
    "diciembre",
)
_MONTH = rf"(?i:{any_of([*MONTHS, 'setiembre'])})"
_YEAR = r"(?:19|20)\d\d"

_SMALL = r"(?:(?:de|del|la|las|los|y|i|da|do|dos|san|van|von)[ ])"
_NAME_END = r"(?!(?:Nº|N\.º|Nº?Col|NIF|DNI|NHC|Servicio|Sección|Unidad|Departamento|Hospital|Clínica|Centro|Complejo|Calle|Avda|Avenida|Av|Plaza|Paseo|Ctra|Carretera|Email|E-mail|e-mail|Correo|Tel|Tfno|Fax|Edad|Sexo|Médico|Fecha|Domicilio|Urbanización|Instituto|Facultad|Universidad|C/)\b)"
_NAME = rf"{_NAME_END}{CAPITALISED}(?:[ ]{_SMALL}{{0,2}}{_NAME_END}{CAPITALISED}){{0,4}}"
_STREET = r"(?:C/|(?:Calle|Avda|Avenida|Av|Plaza|Pza|Pl|Paseo|Pº|Carretera|Ctra|Ronda|Urbanización|Urb|Rúa|Glorieta|Camino|Travesía|Carrer|Rambla|Gran Vía|Barrio|Polígono|Paraje|Plaça|Avinguda|Passeig)\b\.?)"
_PLACE = any_of(
    {*_Address.states, *_Address.regions, "Alicante", "Castellón", "Vizcaya", "Guipúzcoa", "La Coruña"}
)
_COUNTRY = any_of(
    [
        "España",
        "Portugal",
        "Francia",
        "Italia",
        "Alemania",
        "Marruecos",
        "Rumanía",
        "Ecuador",
        "Colombia",
        "Perú",
        "Bolivia",
        "Argentina",
        "Venezuela",
        "Chile",
        "Cuba",
        "México",
        "Brasil",
        "Uruguay",
        "Paraguay",
        "República Dominicana",
        "Reino Unido",
        "Estados Unidos",
        "China",
        "Senegal",
        "Nigeria",
    ]
)
_POSTCODE = r"[0-5]\d{4}(?<![\d.,/-]\d{5})(?<=(?:0[1-9]|[1-4]\d|5[0-2])\d{3})(?!\d)"
_WHO = r"(?:varón|mujer|paciente|hombre|niñ[oa]|enferm[oa]|lactante|chic[oa]|joven|ancian[oa]|neonato|adolescente|señora?)"
_SPAN = r"(?i:años?|mes(?:es)?|d[íi]as?|semanas?|horas?|a(?=[ ]))"
_ORGANIZATION = r"(?:Hospital|Clínica|Complejo[ ](?:Asistencial|Hospitalario|Universitario)|Centro[ ](?:de[ ]Salud|Médico)|Policlínica|Policlínico|Instituto|Fundación|Universidad|Facultad|Corporació[n]?)"

SPANISH = LanguagePatterns(
    code="es",
    regions=("ES",),
    day_first=True,
    patterns={
        PERSON: (
            (
                after(
                    r"nombre(?: y apellidos)?|apellidos?|médic[oa](?: responsable)?|responsable cl[íi]nico|enfermer[oa]|remitido por|autor|firmado(?: por)?",
                    rf"(?:(?:Dr|Dra|D|Dña|Prof)\.?[ ]?)?\K{_NAME}",
                ),
                LABELLED,
            ),
            (rf"^[ \t]*(?i:paciente)[ \t]*:[ \t]*\K{_NAME}", LABELLED),
            (rf"\b(?:Dr|Dra|Sr|Sra|Dña|Don|Doña|Prof|Profa|D)\b\.?[ªº]?[ ]?\K{_NAME}", LABELLED),
        ),
        DATE: (
            (rf"\b\d{{1,2}}º?[ ]de[ ]{_MONTH}(?:[ ]del?(?:[ ]año)?[ ]{_YEAR})?\b", SHAPED),
            (rf"\b{_MONTH}(?:[ ]del?(?:[ ]año)?|,)?[ ]{_YEAR}\b", SHAPED),
            (
                rf"\b(?i:en|desde|hasta|año|años|de|durante)[ ](?:el[ ](?:año[ ])?)?\K{_YEAR}\b(?![ ]*(?:mg|ml|g|UI|cc|cm|mm)\b)",
                SHAPED,
            ),
        ),
        AGE: (
            (after("edad", rf"\d{{1,3}}(?:[ ]{{1,2}}{_SPAN})?\b(?![ ]?(?:mm|cm|kg))"), LABELLED),
            (
                rf"\b(?i:{_WHO})(?:[ ]\p{{Ll}}+){{0,4}}?[ ]de[ ]\K\d{{1,3}}[ ]{{1,2}}{_SPAN}(?:[ ]y[ ](?:medio|\d{{1,2}}[ ]{_SPAN}))?\b",
                LABELLED,
            ),
            (rf"\b\d{{1,3}}[ ]{{1,2}}{_SPAN}(?=[ ]de[ ](?:edad|vida)\b)", LABELLED),
            (
                r"\b(?i:a los)[ ]\K\d{1,3}[ ]años\b(?![ ](?:de[ ](?:evolución|seguimiento|la|el)|del)\b)",
                SHAPED,
            ),
            (
                r"\b(?i:noventa(?:[ ]y[ ](?:uno?|dos|tres|cuatro|cinco|seis|siete|ocho|nueve))?)(?=[ ]años\b)",
                LABELLED,
            ),
        ),
        PHONE: (
            (
                after(
                    r"tel[eé]fonos?|tel|tfn?o?|fax|móvil",
                    r"[+(]?\d[\d ()./-]{5,17}\d",
                    sign=r"\.?[ \t]*[:：/]?[ \t]*",
                ),
                LABELLED,
            ),
        ),
        ID: (
            (
                after(
                    r"NHC|NASS|NSS|CIPA?|DNI|NIF|NIE|n\.?º? ?col(?:egiad[oa])?|n\.?º de (?:historia|colegiado|afiliación)|"
                    r"n[uú]mero de (?:historia|colegiado|afiliación)|historia(?: clínica)?(?: n\.?º)?|episodio|CIAS|colegiad[oa](?: n\.?º)?",
                    CODE,
                    sign=r"\.?[ \t]*[:：]?[ \t]*(?=[\p{Lu}\d])",
                ),
                LABELLED,
            ),
        ),
        LOCATION: (
            (after(r"domicilio|dirección|calle", r"[^\n;]{2,80}?(?=\.?[ \t]*$|[;\n])"), LABELLED),
            (
                after(
                    r"localidad ?/? ?provincia|localidad|provincia|población|municipio|ciudad|país(?: de nacimiento)?|lugar de nacimiento",
                    r"[^\n;:]{2,60}?(?=\.?[ \t]*$|\.?[ ]{1,3}\p{Lu}\p{L}*:|[;\n])",
                ),
                LABELLED,
            ),
            (after(r"c\.?p\.?|código postal", r"\d{4,5}\b"), LABELLED),
            (
                rf"(?<!\w){_STREET}[ ]?(?:(?:\p{{Lu}}[\p{{L}}'’.]*|\p{{L}}{{1,3}}|\d{{1,2}})[ ]){{0,6}}\p{{Lu}}[\p{{L}}'’]+(?:,?[ ]?(?:(?:n\.?º|nº|núm\.?|s/n|#)[ ]?)?(?:\d{{1,4}}(?:[-–]\d{{1,4}})?|s/n)[ªº°]?(?:,?[ ]?(?:\d{{1,2}}[ªº°]?)?[ ]?\p{{Lu}}?\b(?!\p{{Ll}}))?)?",
                SHAPED,
            ),
            (rf"{_POSTCODE}(?=[ ,.-]{{1,3}}\p{{Lu}}\p{{Ll}})", SHAPED),
            (rf"{_POSTCODE}[ ,.-]{{1,3}}\K{CAPITALISED}(?:[ ]{_SMALL}{{0,2}}{CAPITALISED}){{0,3}}", SHAPED),
            (rf"(?<!\p{{Lu}}\p{{L}}+[ ])(?<!\p{{Lu}}\p{{L}}+[ ]de[ ])\b{_PLACE}\b(?![ ]\p{{Lu}})", SHAPED),
            (rf"\b{_COUNTRY}\b", SHAPED),
        ),
        ORGANIZATION: (
            (
                rf"\b{_ORGANIZATION}(?:[ ](?:{_SMALL}{{1,2}}|\d{{1,2}}[ ]de[ ])?(?:{_NAME_END}{CAPITALISED}|\d{{1,2}}(?=[ ]de[ ])|octubre\b|de[ ]octubre\b)){{1,7}}",
                SHAPED,
            ),
        ),
    },
)
"""Names by label or title; dates, ages, numbers by label, addresses, provinces, countries, hospitals."""
