"""The CustomResourceDefinition: schema, CEL rules and transitions, from the pydantic models."""
