"""A small model of the packet walk: the second opinion on every verdict, backend and byte.

Written from the RFCs and from what the documentation promises; it parses with scapy, builds bytes
by hand, and shares no code with bpf/ or agent/. Only ``mirror`` knows the tables: it sends each
frame to the kernel and to the model and compares.

    read      what a frame says, with scapy
    services  whom it is for
    hashes    which backend a new flow gets
    flows     who is remembered, in which state, and for how long
    ports     the ports of fullnat
    write     what goes out: dsr, tunnels, rewritten addresses
    answers   what the sender is told
    walk      the order of all that
"""
