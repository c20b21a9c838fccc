"""The validating webhook: the API models as a second layer of refusal, behind the CRD's schema and CEL rules."""
