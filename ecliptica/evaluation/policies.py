"""Two policies, two authored responses to one prompt: which of them does the model take under each? Shared by refusal and honesty."""

from ecliptica.evaluation import compare
from ecliptica.evaluation.cells import Cell
from ecliptica.evaluation.metrics import joint
from ecliptica.evaluation.metrics.refusal_boundary import refused
from ecliptica.isd.sets import load_policies
from model.errors import InputError


def add_wording(parser):
    parser.add_argument(
        "--wording",
        type=int,
        default=3,
        help="which wording of the policies, from 1 (default: 3, the one of the test split; 1 trains, 2 is for dev)",
    )


def texts_of(path, names, wording):
    """{policy: text} for the two `names`."""
    policies = load_policies(path)
    if missing := [name for name in names if name not in policies]:
        raise InputError(f"{path}: no policy {missing[0]!r}; it has {', '.join(policies)}")
    if not 1 <= wording <= min(len(policies[name]) for name in names):
        raise InputError(
            f"--wording {wording}: {path} has {min(len(policies[name]) for name in names)} wordings"
        )
    return {name: policies[name][wording - 1] for name in names}


def preferred(subject, args, triples, policies):
    """Per (item, first, second): [1 if `first` is preferred by PMI, 0 if `second`, 0.5 on a tie] for each policy."""

    def cell(item, policy, response):
        return Cell(
            policies[policy], item.prompt, response, {"prompt": item.id, "instruction": policy}
        )

    def prior(response):
        return Cell(None, joint.CONTENT_FREE, response, {"condition": "content-free"})

    wanted = [
        c
        for item, *texts in triples
        for text in texts
        for c in (prior(text), *(cell(item, policy, text) for policy in policies))
    ]
    scores = compare.scored(subject, args, wanted)
    pmi = lambda item, policy, text: scores[cell(item, policy, text)] - scores[prior(text)]  # noqa: E731
    return [
        [refused(pmi(item, policy, first), pmi(item, policy, second)) for policy in policies]
        for item, first, second in triples
    ]
