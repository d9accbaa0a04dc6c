"""Compute Engine's published description of itself: what a request and an answer may look like."""

from __future__ import annotations

import importlib.util
import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Method:
    """One method of the API, found by verb and path."""

    id: str
    verb: str
    path: re.Pattern[str]
    parameters: Mapping[str, Mapping[str, Any]]
    request: Mapping[str, Any] | None
    response: Mapping[str, Any] | None


class Discovery:
    """The discovery document that googleapiclient ships, for checking."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("googleapiclient")
        if found is None or found.origin is None:
            pytest.skip("the stand-in for Compute Engine needs google-api-python-client (a dev dependency)")
        path = Path(found.origin).parent / "discovery_cache/documents/compute.v1.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        self._schemas: dict[str, Any] = document["schemas"]
        self._common = set(document["parameters"])
        self._methods = list(self._read(document, "/" + document["servicePath"]))

    def _read(self, node: Mapping[str, Any], root: str) -> Iterator[Method]:
        for raw in node.get("methods", {}).values():
            pattern = re.sub(r"\\\{\\?\+?(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(root + raw["path"]))
            yield Method(
                raw["id"].removeprefix("compute."),
                raw["httpMethod"],
                re.compile(pattern),
                raw["parameters"],
                raw.get("request"),
                raw.get("response"),
            )
        for child in node.get("resources", {}).values():
            yield from self._read(child, root)

    def find(self, verb: str, path: str) -> tuple[Method, dict[str, str]] | None:
        """The method, and the parameters in the path."""
        for method in self._methods:
            if method.verb == verb and (match := method.path.fullmatch(path)):
                return method, {k: urllib.parse.unquote(v) for k, v in match.groupdict().items()}
        return None

    def faults(
        self, method: Method, path: Mapping[str, str], query: Mapping[str, str], body: Any
    ) -> list[str]:
        """What is wrong with a request; nothing, if the list is empty."""
        found = []
        for name, value in path.items():
            pattern = method.parameters[name].get("pattern")
            if pattern and not re.fullmatch(pattern, value):
                found.append(f"path {name}: {value!r} does not match {pattern}")
        for name in query:
            if name not in method.parameters and name.removeprefix("$") not in self._common:
                found.append(f"query {name}: no such parameter")
        found += [
            f"{name} is missing"
            for name, about in method.parameters.items()
            if about.get("required") and name not in path and name not in query
        ]
        if method.request is not None:
            found += self.check(method.request, {} if body is None else body, "body")
        elif body:
            found.append("a body is not allowed")
        return found

    def answer_faults(self, method: Method, answer: Any) -> list[str]:
        """What is wrong with an answer of ours."""
        return self.check(method.response, answer, "answer") if method.response else []

    def check(self, schema: Mapping[str, Any], value: Any, at: str) -> list[str]:
        """Everything in a value that a schema does not allow; unknown keys are not."""
        if "$ref" in schema:
            return self.check(self._schemas[schema["$ref"]], value, at)
        kind = schema.get("type")
        if kind == "object":
            return self._check_object(schema, value, at)
        if kind == "array":
            if not isinstance(value, list):
                return [f"{at}: {value!r} is not a list"]
            items = enumerate(value)
            return [fault for k, item in items for fault in self.check(schema["items"], item, f"{at}[{k}]")]
        if kind == "string":
            return self._check_string(schema, value, at)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good = {
            "integer": number and isinstance(value, int),
            "number": number,
            "boolean": isinstance(value, bool),
        }
        return [] if good.get(str(kind), True) else [f"{at}: {value!r} is not of type {kind}"]

    def _check_object(self, schema: Mapping[str, Any], value: Any, at: str) -> list[str]:
        if not isinstance(value, dict):
            return [f"{at}: {value!r} is not an object"]
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        found: list[str] = []
        for key, item in value.items():
            if key in known:
                found += self.check(known[key], item, f"{at}.{key}")
            elif other is not None:
                found += self.check(other, item, f"{at}.{key}")
            else:
                found.append(f"{at}.{key}: no such field")
        return found

    def _check_string(self, schema: Mapping[str, Any], value: Any, at: str) -> list[str]:
        if not isinstance(value, str):
            return [f"{at}: {value!r} is not a string"]
        if "enum" in schema and value not in schema["enum"]:
            return [f"{at}: {value!r} is none of {', '.join(schema['enum'])}"]
        if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
            return [f"{at}: {value!r} does not match {schema['pattern']}"]
        if schema.get("format") in ("int64", "uint64") and not re.fullmatch(r"-?\d+", value):
            return [f"{at}: {value!r} is not a number in a string"]
        return []
