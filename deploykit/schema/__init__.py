"""The published JSON schemas, and a check of parsed JSON against them that needs no other package."""

from deploykit.schema.check import load_schema, violations

__all__ = ["load_schema", "violations"]
