"""So many clients at once, each of which reads one stream after the other until a file is there. Exit
status 0 if every stream was whole."""

import collections
import http.client
import json
import os
import sys
import threading

host, port, clients, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ended = collections.Counter()
lock = threading.Lock()


def stream(connection, number):
    body = {
        "model": "demo/chat-8b",
        "messages": [{"role": "user", "content": f"I am number {number}."}],
        "stream": True,
        "max_tokens": 100,
        "ignore_eos": True,
    }
    head = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), head)
    answer = connection.getresponse()
    said = answer.read()
    whole = answer.status == 200 and said.rstrip().endswith(b"data: [DONE]")
    return "whole" if whole else f"status {answer.status}, ends with {said[-80:]!r}"


def client(number):
    connection = http.client.HTTPConnection(host, port, timeout=60)
    while not os.path.exists(stop):
        try:
            how = stream(connection, number)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            how = repr(error)
        with lock:
            ended[how] += 1


threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for how, times in ended.most_common():
    print(f"{times} streams: {how}")
sys.exit(set(ended) != {"whole"})
