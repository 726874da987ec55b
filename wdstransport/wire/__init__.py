"""Bytes to frozen dataclasses and back, for MS-WDSMT, MS-WDSMA and MS-WDSMSI.

Every format is declared in construct, interpreted and never compiled: compiled declarations accept
truncated input. Nothing here knows a socket, a clock or a session's state.
"""
