"""A team's budget on a real API server: three runs of two priorities, a leader that is killed, a deleted run."""

import asyncio
import json
import re
import signal

import pytest
import pytest_asyncio
from support.chaos_rig import PATIENCE, until
from support.operator_bench import PODS, small_run

from videotrain_api.metrics import TRAINING_BUDGET_SPENT
from videotrain_api.vocabulary import API_VERSION, BUDGET_KIND, KIND, LABEL_TEAM
from videotrain_operator.accounting.training_budgets import DRAIN_SECONDS

PRICE = 36
"""Of a GPU and hour: a run of PODS GPUs costs two hundredths a second."""
MORE = 2.50
"""That the team may spend when all its runs hold nodes."""
AHEAD = DRAIN_SECONDS * PODS * PRICE / 3600
"""What a run that waits for its first step costs until it has left its nodes."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Team:
    """The budget of a bench's namespace and the runs in it."""

    def __init__(self, bench, name):
        self.bench, self.name = bench, name

    async def make(self, name, priority):
        body = small_run(name, self.bench.namespace, pool={"gpusPerNode": 1, "pricePerGpuHour": str(PRICE)})
        body["spec"]["priority"] = priority
        body["metadata"]["labels"] = {LABEL_TEAM: "video"}
        await self.bench.client.create(body, "test")

    async def body(self):
        return await self.bench.client.get(BUDGET_KIND, "", self.name)

    async def becomes(self, wanted, what):
        """Wait until the stored budget is so; its status."""
        found = {}

        def explain():
            return f"{json.dumps(found, indent=1)}\n{self.bench.operators.tail()}"

        async with asyncio.timeout(PATIENCE):
            while not wanted(found := (await self.body()).get("status") or {}):
                assert self.bench.nobody_ended(), f"{what}: {explain()}"
                await asyncio.sleep(0.2)
        return found

    async def may_spend_more(self):
        """From now on so much, however long it took until the runs held their nodes; the new amount."""
        shown = re.compile(rf'^{TRAINING_BUDGET_SPENT.name}{{budget="{self.name}",currency="USD"}} ([\d.]+)$', re.M)
        leader = await self.bench.leads()
        # Of the metrics, since the status is written once a minute while no rule is reached.
        spent = await until(lambda: shown.search(self.bench.operators.metrics(leader)), "the leader judges the budget")
        amount = f"{float(spent[1]) + MORE:.2f}"
        await self.set_amount(amount)
        return amount

    async def set_amount(self, amount):
        await self.bench.client.patch(BUDGET_KIND, "", self.name, {"spec": {"amount": amount}}, manager="test")

    async def another_leads(self):
        """The leader is killed, and another replica takes its place."""
        self.bench.operators.end(await self.bench.leads(), signal.SIGKILL)
        self.bench.operators.start()
        await self.bench.all_ready()

    def cost(self, *names):
        return sum((self.bench.status(name).get("cost") or {}).get("totalMicros", 0) for name in names) / 1e6


@pytest_asyncio.fixture
async def team(bench):
    name = f"{bench.namespace}-video"
    rules = [{"atPercent": 50, "belowPriority": 5}, {"atPercent": 100}]
    rules = [rule | {"action": "CheckpointAndSuspend"} for rule in rules]
    spec = {"team": "video", "namespaces": [bench.namespace], "amount": "500", "rules": rules}
    body = {"apiVersion": API_VERSION, "kind": BUDGET_KIND, "metadata": {"name": name}, "spec": spec}
    await bench.client.create(body, "test")
    await bench.start()
    yield Team(bench, name)
    await bench.client.delete(BUDGET_KIND, "", name)


async def suspended(bench, *names):
    def all_are():
        return all(bench.status(name).get("phase") == "Suspended" and not bench.pods(name) for name in names)

    await until(all_are, f"{names} hold no nodes", bench.operators.tail)


async def test_three_runs_of_two_priorities_stay_within_the_amount_although_the_leader_is_killed(bench, team, kubectl):
    for name, priority in (("low-1", 0), ("low-2", 0), ("high", 5)):
        await team.make(name, priority)
    await bench.rosters(["low-1", "low-2", "high"])
    amount = await team.may_spend_more()
    await team.becomes(lambda status: status.get("reached"), "a rule holds")
    condition = await bench.becomes("low-1", "TeamBudgetOK", "False", "TeamBudget")
    assert re.search(
        rf"^TrainingBudget {team.name} \({amount} USD a month\): CheckpointAndSuspend", condition["message"]
    )
    await team.another_leads()
    await suspended(bench, "low-1", "low-2", "high")
    assert bench.status("low-1")["generation"] == 1, "it did not begin again under the next leader"
    status = await team.becomes(lambda status: len(status["reached"]) == 2, "both rules hold")
    assert [rule["belowPriority"] for rule in status["reached"] if "belowPriority" in rule] == [5]
    stopped = {name: bench.condition(name, "TeamBudgetOK")["lastTransitionTime"] for name in ("low-1", "low-2", "high")}
    assert max(stopped["low-1"], stopped["low-2"]) < stopped["high"]
    everyone = team.cost("low-1", "low-2", "high")
    assert float(amount) - 4 * AHEAD < everyone < float(amount) + AHEAD
    assert [*re.findall(r"Warning TeamBudget: ", " ".join(bench.messages("high")))]
    shown = kubectl("get", "vtb", team.name).stdout
    assert re.search(rf"{team.name} +CheckpointAndSuspend +\d{{4}}-\d\d +\d+\.\d+ +{amount} +USD +\d+\.\d%", shown), (
        shown
    )


async def test_a_deleted_run_counts_on_and_a_raised_amount_lets_the_others_go_on(bench, team):
    for name in ("one", "two"):
        await team.make(name, 0)
    await bench.rosters(["one", "two"])
    await team.may_spend_more()
    await team.becomes(lambda status: status.get("reached"), "a rule holds")
    await suspended(bench, "one", "two")
    before = team.cost("one", "two")
    await bench.client.delete(KIND, bench.namespace, "one")
    await until(lambda: not bench.run("one"), "it is gone", bench.operators.tail)
    await team.another_leads()
    await team.set_amount("500")
    status = await team.becomes(lambda status: not status.get("reached"), "no rule holds")
    assert status["spentMicros"] / 1e6 >= before and status["runs"] == 2
    await bench.rosters(["two"], least=2)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"amount": "-1"}, "spec.amount"),
        ({"rules": [{"atPercent": 101, "action": "Notify"}]}, "spec.rules[0].atPercent"),
        ({"rules": [{"atPercent": 90, "action": "Notify", "belowPriority": 1}]}, "leave belowPriority out"),
        ({"currency": "dollars"}, "spec.currency"),
    ],
)
def test_the_api_server_refuses_and_names_the_field(kubectl, control_plane, spec, told):
    body = {"apiVersion": API_VERSION, "kind": BUDGET_KIND, "metadata": {"name": "wrong"}}
    body["spec"] = {"amount": "5"} | spec
    done = kubectl("apply", "-f", "-", stdin=json.dumps(body), check=False)
    assert done.returncode != 0 and told in done.stderr, done.stderr
