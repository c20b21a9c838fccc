"""Pod templates as users write them, drawn at random: sound strategic merge patches of a worker pod."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

Json = dict[str, Any]

names = st.from_regex(r"\A[a-z][a-z0-9]{0,8}\Z")
texts = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=20)
quantities = st.sampled_from(["1", "500m", "2Gi", "100Mi"])
RESTRICTED: Final = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """Mappings with any of the fields."""
    return st.fixed_dictionaries({}, optional=fields)


def listed(items: st.SearchStrategy[Json], key: str, most: int = 3) -> st.SearchStrategy[list[Json]]:
    """Lists whose items differ in their merge key."""
    return st.lists(items, max_size=most, unique_by=lambda item: item[key])


env = listed(
    st.fixed_dictionaries({"name": names.map(str.upper), "value": texts})
    | st.fixed_dictionaries(
        {"name": names.map("NODE_{}".format), "valueFrom": st.just({"fieldRef": {"fieldPath": "spec.nodeName"}})}
    )
    | st.just({"name": "NCCL_DEBUG", "$patch": "delete"}),
    "name",
)
resources = st.fixed_dictionaries(
    {}, optional={"requests": st.fixed_dictionaries({"cpu": st.just("100m")}), "limits": some(memory=st.just("900Gi"))}
)
worker = some(
    env=env,
    resources=resources,
    workingDir=st.just("/tmp"),
    args=st.lists(names, max_size=2),
    terminationMessagePolicy=st.sampled_from(["File", None]),
    securityContext=st.fixed_dictionaries({"runAsUser": st.integers(1, 9999)}),
    readinessProbe=st.none() | st.fixed_dictionaries({"periodSeconds": st.integers(1, 60)}),
).map(lambda fields: {"name": "worker", **fields})
sidecars = st.fixed_dictionaries(
    {"name": names.map("side-{}".format), "image": names, "securityContext": st.just(RESTRICTED)},
    optional={"env": env.map(lambda items: [item for item in items if "$patch" not in item])},
)
volumes = st.fixed_dictionaries({"name": names.map("vol-{}".format), "emptyDir": some(sizeLimit=quantities)}) | (
    st.sampled_from(
        [
            {"name": "cache", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "shm", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "tmp", "emptyDir": None, "ephemeral": {"volumeClaimTemplate": {"spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}},
        ]
    )
)  # fmt: skip
tolerations = st.fixed_dictionaries({"key": names, "operator": st.just("Exists")}, optional={
    "effect": st.sampled_from(["NoSchedule", "PreferNoSchedule", "NoExecute"])})  # fmt: skip
terms = st.fixed_dictionaries({"matchExpressions": st.lists(
    st.fixed_dictionaries({"key": names, "operator": st.sampled_from(["Exists", "DoesNotExist"])}), min_size=1,
    max_size=2)})  # fmt: skip
beside = st.fixed_dictionaries({"labelSelector": st.just({"matchLabels": {"app": "x"}}), "topologyKey": names})
affinity = some(
    nodeAffinity=st.lists(terms, min_size=1, max_size=2).map(
        lambda found: {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": found}}
    ),
    podAntiAffinity=st.lists(beside, max_size=2).map(
        lambda found: {"requiredDuringSchedulingIgnoredDuringExecution": found}
    ),
)
specs = some(
    containers=st.tuples(listed(sidecars, "name", 2), worker).map(lambda both: [*both[0], both[1]]),
    initContainers=listed(sidecars, "name", 2),
    volumes=listed(volumes, "name"),
    tolerations=st.lists(tolerations, max_size=3),
    nodeSelector=st.dictionaries(names, names, max_size=2) | st.none(),
    affinity=affinity | st.none(),
    securityContext=some(fsGroup=st.integers(1, 9999), supplementalGroups=st.just([7])),
    hostAliases=listed(st.fixed_dictionaries({"ip": st.just("10.0.0.1"), "hostnames": st.just(["s3"])}), "ip", 1),
    topologySpreadConstraints=st.just(
        [{"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}]
    ),
    dnsConfig=st.just({"options": [{"name": "ndots", "value": "1"}]}),
    enableServiceLinks=st.none() | st.booleans(),
    preemptionPolicy=st.just("PreemptLowerPriority"),
)
pod_templates: Final = st.fixed_dictionaries(
    {"spec": specs},
    optional={"metadata": some(labels=st.dictionaries(names, names), annotations=st.dictionaries(names, texts))},
)
"""Values of spec.podTemplate that a namespace with the restricted Pod Security Standard accepts."""
