"""Sockets: interfaces, multicast, batches, pacing. The only package that imports socket or trio."""
