"Phone numbers as people type and paste them: one table for the API and for the page."

import unicodedata

NUMBER = "+12025550123"
MARKS = "\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff\u00ad"
SPACES = " \t\n\r\u00a0\u1680\u2002\u2003\u2007\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
OTHERS = "().[]/~·\uff08\uff09\uff0e\uff0f"


def in_script(zero: int) -> str:
    "Write the number with the ten digits that start at `zero`."
    return "+" + "".join(chr(zero + int(c)) for c in NUMBER[1:])


SCRIPTS = [0x0660, 0x06F0, 0x0966, 0x09E6, 0x0E50, 0x17E0, 0x1810, 0xA620, 0xFF10, 0x1D7CE, 0x1D7D8, 0x1E950]
assert all(unicodedata.decimal(chr(zero)) == 0 for zero in SCRIPTS)

ACCEPTED = [  # all of them mean NUMBER
    NUMBER,
    "+1 202 555 0123",
    "+1 (202) 555-0123",
    "+1 (202) 555\u20110123",
    "+1–202–555–0123",
    "+1.202.555.0123",
    "+1/202/555/0123",
    "\u202a+1 (202) 555-0123\u202c",
    "\u2066+1\u00a0202\u00a0555\u00a00123\u2069",
    "\u200e+1 202 555 0123\u200f",
    "  +1 202 555 0123\n",
    "0012025550123",
    "00 1 202 555 0123",
    "００１２０２５５５０１２３",
    "＋１２０２５５５０１２３",
    "tel:+1-202-555-0123",
    "TEL:+12025550123",
    "tel:0012025550123",
    "(+1) 202 555 0123",
    "+1 (1) 202 555 0123",  # the trunk prefix in brackets
    *(f"+1{mark}202{mark}555{mark}0123{mark}" for mark in MARKS + SPACES + DASHES + OTHERS),
    *(f"{mark}+1{mark}{mark}2025550123" for mark in MARKS),
    *map(in_script, SCRIPTS),
    "\u202a" * 25 + NUMBER + "\u202c" * 25,
]
REFUSED = [  # refused by the page and the API before anything is sent or stored
    "12025550123",
    "2025550123",
    "+0123456789",
    "+1 202 abc",
    "call me",
    "+1 202 555 0123 ext. 5",
    "+1 202 555 0123 x5",
    "tel:+1-202-555-0123;ext=5",
    "+1 202 555 0123, +1 202 555 0145",
    "+1+2025550123",
    "++12025550123",
    "1+2025550123",
    "+1 202",
    "+12345678901234567",
    "+1-800-FLOWERS",
    "sms:+12025550123",
    "tel:2025550123",
    "+1_202_555_0123",
    "+1 202 555 0123#",
    "+",
]
EMPTY = ["", " ", "\u200b", "\u202a\u202c", "( ) -"]  # not a number at all
