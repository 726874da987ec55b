"""State machines of MS-WDSMT, MS-WDSMA and MS-WDSMSI: no sockets, no clock, no chance of their own.

Every entry point takes `now`, seconds of a monotonic clock. After any call, drain what is to be sent and
the events, and come back at `next_deadline()`.
"""
