# SPDX-License-Identifier: BSD-3-Clause
"""The trace event format as far as timelines use it: a JSON schema for each phase, and what a schema cannot say.

After "Trace Event Format" (Google): duration events "X", metadata "M", flows "s" and "f", counters "C", instants "i".
"""

NUMBER, TEXT, OBJECT = {"type": "number"}, {"type": "string"}, {"type": "object"}
INTEGER, TIME = {"type": "integer"}, {"type": "number", "minimum": 0}
PLACE = {"pid": INTEGER, "tid": INTEGER}
KINDS = ["region", "verb", "launch", "copy", "wait", "message", "solve"]
SORTING = ["process_sort_index", "thread_sort_index"]
METADATA = {"process_name": "name", "thread_name": "name", "process_labels": "labels"}


def _of(**fields):
    return {"type": "object", "required": list(fields), "properties": fields, "additionalProperties": False}


PHASES = {
    "X": _of(ph=TEXT, name=TEXT, cat={"enum": KINDS}, ts=TIME, dur=TIME, args=OBJECT, **PLACE),
    "M": _of(ph=TEXT, name={"enum": [*METADATA, *SORTING]}, ts=TIME, args=OBJECT, **PLACE),
    "s": _of(ph=TEXT, name=TEXT, cat={"enum": KINDS}, ts=TIME, id=INTEGER, **PLACE),
    "f": _of(ph=TEXT, name=TEXT, cat={"enum": KINDS}, ts=TIME, id=INTEGER, bp={"enum": ["e"]}, **PLACE),
    "C": _of(ph=TEXT, name=TEXT, ts=TIME, args={"type": "object", "values": NUMBER, "minProperties": 1}, **PLACE),
    "i": _of(ph=TEXT, name=TEXT, cat=TEXT, ts=TIME, s={"enum": ["g", "p", "t"]}, **PLACE),
}  # fmt: skip
_TYPES = {"number": (int, float), "integer": int, "string": str, "object": dict, "array": list}


def problems(value, schema, at="event"):
    """What of JSON schema is used here: type, enum, minimum, required, properties, values, minProperties."""
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{at}: {value!r} is none of {schema['enum']}"]
    if isinstance(value, bool) or not isinstance(value, _TYPES[schema["type"]]):
        return [f"{at}: {value!r} is no {schema['type']}"]
    if "minimum" in schema and value < schema["minimum"]:
        return [f"{at}: {value!r} is below {schema['minimum']}"]
    if schema["type"] != "object":
        return []
    found = [f"{at}: no {name}" for name in schema.get("required", ()) if name not in value]
    if len(value) < schema.get("minProperties", 0):
        found.append(f"{at}: empty")
    known = schema.get("properties", {})
    for name, one in value.items():
        if name in known:
            found += problems(one, known[name], f"{at}.{name}")
        elif "values" in schema:
            found += problems(one, schema["values"], f"{at}.{name}")
        elif schema.get("additionalProperties") is False:
            found.append(f"{at}: unknown {name}")
    return found


def ns(us):
    """The nanoseconds that were written as microseconds with three decimals."""
    return round(us * 1000)


def nested(slices):
    """Problems of one thread: a slice that overlaps another without lying in it."""
    found, open_ends = [], []
    for one in sorted(slices, key=lambda e: (ns(e["ts"]), -ns(e["dur"]))):
        start = ns(one["ts"])
        end = start + ns(one["dur"])
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        if open_ends and end > open_ends[-1]:
            found.append(f"{one['name']} at {start} ends at {end}, after what is around it")
        open_ends.append(end)
    return found


def flows(events, slices):
    """Problems of arrows: both ends, each in a slice of its thread, none backwards."""
    found, ends = [], {}
    for one in events:
        if one["ph"] in "sf":
            ends.setdefault(one["id"], {}).setdefault(one["ph"], []).append(one)
    for number, pair in ends.items():
        if {phase: len(these) for phase, these in pair.items()} != {"s": 1, "f": 1}:
            found.append(f"flow {number}: not one start and one end")
            continue
        first, last = pair["s"][0], pair["f"][0]
        if ns(first["ts"]) > ns(last["ts"]):
            found.append(f"flow {number}: runs backwards")
        if (first["cat"], first["name"]) != (last["cat"], last["name"]):
            found.append(f"flow {number}: two names")
        for one in (first, last):
            around = [s for s in slices[one["pid"], one["tid"]] if _holds(s, one)]
            if not around:
                found.append(f"flow {number}: no slice around {one}")
    return found


def _holds(slice_, one):
    start = ns(slice_["ts"])
    return start <= ns(one["ts"]) <= start + ns(slice_["dur"])


def all_problems(events):
    """Everything that is wrong with a list of trace events."""
    found = []
    for one in events:
        found += problems(one, PHASES[one["ph"]]) if one.get("ph") in PHASES else [f"unknown phase {one}"]
        if one.get("ph") == "M" and one["name"] in METADATA:
            found += problems(one["args"], _of(**{METADATA[one["name"]]: TEXT}), one["name"])
    if found:
        return found
    slices = {}
    for one in events:
        if one["ph"] in "Xsf":
            slices.setdefault((one["pid"], one["tid"]), [])
        if one["ph"] == "X":
            slices[one["pid"], one["tid"]].append(one)
    for these in slices.values():
        found += nested(these)
    names = {(e["name"], e["pid"], e["tid"]) for e in events if e["ph"] == "M"}
    for pid, tid in slices:
        if ("thread_name", pid, tid) not in names or ("process_name", pid, 0) not in names:
            found.append(f"process {pid}, thread {tid}: without a name")
    return found + flows(events, slices)
