"""A DNS server that knows the names in a file, `name address...` a line, read at every question."""

import socket
import struct
import sys

address, path = sys.argv[1:]
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((address, 53))
while True:
    question, client = server.recvfrom(4096)
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode())
        at += 1 + question[at]
    (kind,) = struct.unpack(">H", question[at + 1 : at + 3])
    with open(path) as zone:
        known = {line.split()[0]: line.split()[1:] for line in zone}
    addresses = known.get(".".join(labels).lower())
    answers = [
        b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 600, 4) + socket.inet_aton(each)
        for each in addresses or []
        if kind == 1
    ]
    flags = 0x8180 if addresses is not None else 0x8183
    head = question[:2] + struct.pack(">HHHHH", flags, 1, len(answers), 0, 0)
    server.sendto(head + question[12 : at + 5] + b"".join(answers), client)
