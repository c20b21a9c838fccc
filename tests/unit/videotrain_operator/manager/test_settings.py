import pytest

from videotrain_api.resource.bill_storage import BillStorage
from videotrain_operator.manager import settings
from videotrain_operator.manager.settings import Settings, SettingsError


def test_a_flag_goes_before_a_variable_and_a_variable_before_the_default():
    environment = {"VIDEOTRAIN_OPERATOR_HTTP_PORT": "1111", "VIDEOTRAIN_OPERATOR_LEASE_SECONDS": "20"}
    settings = Settings.load(["--http-port", "2222"], environment)
    assert (settings.http_port, settings.lease_seconds, settings.log_format) == (2222, 20.0, "json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--http-port", "70000"], ["--http-port=70000", "at most 65535"]),
        (["--lease-seconds=soon"], ["--lease-seconds=soon", "a number"]),
        (["--log-format", "xml"], ["--log-format=xml", "json, text"]),
        (["--leader-elect", "maybe"], ["--leader-elect=maybe", "true or false"]),
        (["--network-policy", "{"], ["--network-policy={", "JSON"]),
        (["--network-policy", '{"storagePort": []}'], ["storagePort", "did you mean 'storagePorts'?"]),
        (["--network-policy", "[]"], ["--network-policy=[]", "a mapping"]),
        (["--concurrent-passes", "1.5"], ["--concurrent-passes=1.5", "a whole number"]),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(arguments, words):
    with pytest.raises(SettingsError) as caught:
        Settings.load(arguments, {})
    assert all(word in str(caught.value) for word in words)


def test_a_wrong_variable_is_named_as_the_variable():
    with pytest.raises(SettingsError, match="VIDEOTRAIN_OPERATOR_HTTP_PORT=-1"):
        Settings.load([], {"VIDEOTRAIN_OPERATOR_HTTP_PORT": "-1"})


def test_namespaces_are_a_list_and_a_switch_may_stand_alone():
    settings = Settings.load(["--namespaces", "a, b,", "--leader-elect"], {})
    assert settings.namespaces == ("a", "b")
    assert settings.leader_elect
    assert not Settings.load(["--leader-elect=false"], {}).leader_elect


def test_an_unknown_flag_ends_with_a_message(capsys):
    with pytest.raises(SystemExit):
        Settings.load(["--lease-second", "3", "--nonsense", "1"], {})
    assert "nonsense" in capsys.readouterr().err


def test_a_place_for_bills_is_read_and_wants_its_library(monkeypatch):
    flags = ["--bill-storage", '{"uri": "s3://finance/bills", "endpointUrl": "http://minio:9000"}']
    place = BillStorage(uri="s3://finance/bills", endpoint_url="http://minio:9000")
    assert Settings.load(flags, {}).bill_place() == place
    assert Settings.load([], {}).bill_place() is None
    for wrong in ('{"uri": "finance/bills"}', '{"uri": "s3://finance/bills", "endpointUrl": "minio:9000"}'):
        with pytest.raises(SettingsError, match=r"--bill-storage=.*(uri|endpointUrl)"):
            Settings.load(["--bill-storage", wrong], {})
    monkeypatch.setattr(settings, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"videotrain-operator\[storage\]"):
        Settings.load(flags, {})
