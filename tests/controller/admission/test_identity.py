"""Who a caller is."""

import grpc
import pytest

from controller.admission.identity import identify
from controller.policy import parse_policy
from curfew.rpc.errors import RpcError

POLICY = parse_policy(
    "apiVersion: curfew/v1\ntenants:\n  - name: support\n    key: {env: KEY}\n",
    "policy.yaml",
    {"KEY": "s3cret"},
)


@pytest.mark.parametrize("value", ["Bearer s3cret", "bearer s3cret"])
def test_a_key_names_its_tenant(value: str) -> None:
    metadata = [("user-agent", "x"), ("authorization", value)]
    assert identify(POLICY, metadata) is POLICY.tenants["support"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([], "no API key: send metadata authorization: Bearer KEY"),
        ([("authorization", "Bearer s3cret")] * 2, "authorization came 2 times; send it once"),
        ([("authorization", "s3cret")], "authorization is not of the form Bearer KEY"),
        ([("authorization", "Bearer ")], "authorization is not of the form Bearer KEY"),
        ([("authorization", "Basic s3cret")], "authorization is not of the form Bearer KEY"),
        ([("authorization", "Bearer s3cre")], "the API key is not known"),
        ([("authorization", "Bearer S3CRET")], "the API key is not known"),
        ([("authorization", b"Bearer s3cret")], "authorization is not of the form Bearer KEY"),
    ],
)
def test_nobody_else_is_let_in(metadata: list[tuple[str, str | bytes]], message: str) -> None:
    with pytest.raises(RpcError) as caught:
        identify(POLICY, metadata)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.message == message
