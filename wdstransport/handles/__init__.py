"""What stands behind `wdstransport.wdstci`: handles, callbacks and counted buffers over one trio thread.

    constants.py  the header's numbers, and the exception that carries them
    records.py    the request and session records, and what the callbacks look like
    buffers.py    received memory on loan: views that end, counted extensions, never stale bytes
    library.py    the library's thread, Initialize and Shutdown
    session.py    one session: the state machine behind its handle
    delivery.py   a session's callback thread
    transfer.py   the trio side: initiation, the driver, credit and completion

Locks are taken in this order: the library's, a session's, a buffer registry's; no callback runs under any.
"""
