"""Where bytes come from (sources, in namespaces) and where they land (sinks).

Everything here blocks and belongs in a worker thread; nothing here knows the network or the protocol.
"""
