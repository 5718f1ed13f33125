#!/usr/bin/python3
"""Prints how many bytes per second one TCP connection carries over the loopback network: `loopback_rate.py [SECONDS]`."""
import os
import socket
import sys
import time

PIECE = bytes(1 << 20)

listener = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    sender = socket.create_connection(listener.getsockname())
    listener.close()
    end = time.monotonic() + float(sys.argv[1] if len(sys.argv) > 1 else 2)
    while time.monotonic() < end:
        sender.sendall(PIECE)
    sender.close()
    os._exit(0)
receiver, _ = listener.accept()
buffer, count, began = bytearray(len(PIECE)), 0, time.monotonic()
while read := receiver.recv_into(buffer):
    count += read
print(round(count / (time.monotonic() - began)))
os.wait()
