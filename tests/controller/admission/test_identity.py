"""Who a caller is."""

import grpc
import pytest

from controller.admission.identity import bearer, identify
from controller.policy import parse_policy
from curfew.rpc.errors import RpcError

POLICY = parse_policy(
    "apiVersion: curfew/v1\ntenants:\n  - name: support\n    key: {env: KEY}\n",
    "policy.yaml",
    {"KEY": "s3cret"},
)


@pytest.mark.parametrize("value", ["Bearer s3cret", "bearer s3cret"])
async def test_a_key_names_its_tenant(value: str) -> None:
    assert await identify(POLICY, bearer((value,))) is POLICY.tenants["support"]


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        ((), "no API key: send authorization: Bearer KEY"),
        (("Bearer s3cret",) * 2, "authorization came 2 times; send it once"),
        (("s3cret",), "authorization is not of the form Bearer KEY"),
        (("Bearer ",), "authorization is not of the form Bearer KEY"),
        (("Basic s3cret",), "authorization is not of the form Bearer KEY"),
    ],
)
def test_a_credential_comes_once_and_as_bearer(authorization: tuple[str, ...], message: str) -> None:
    with pytest.raises(RpcError) as caught:
        bearer(authorization)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.message == message


@pytest.mark.parametrize("key", ["s3cre", "S3CRET", "b's3cret'"])
async def test_nobody_else_is_let_in(key: str) -> None:
    with pytest.raises(RpcError) as caught:
        await identify(POLICY, key)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.message == "the API key is not known"
