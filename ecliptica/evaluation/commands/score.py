"""Log-probs of given responses: {"instruction"?, "prompt", "responses"} or {"context",
"responses"} in, {"logps", "tokens"} out."""

from dataclasses import dataclass

from ecliptica.config import option
from ecliptica.evaluation import options
from ecliptica.files import check_writable, read_records, write_lines


@dataclass(frozen=True, kw_only=True)
class Options(options.ContrastOptions, options.Options):
    data: str = option(..., "JSON lines in")
    out: str = option(..., "JSON lines out, in the same order")


def run(options: Options) -> None:
    # Only now what takes seconds to import.
    from ecliptica.evaluation import contrast
    from ecliptica.evaluation.given import context_of, encode_response, parse
    from ecliptica.evaluation.scoring import Job, score_all
    from ecliptica.evaluation.systems import load_one

    # What can be wrong before a model is loaded: the lines, and the output.
    rendered = options.template == "none"
    given = read_records(options.data, lambda record, where: parse(record, where, rendered))
    check_writable(options.out, "--out")
    system = load_one(options)

    jobs = []
    for line in given:
        responses = [encode_response(system, response) for response in line.responses]
        if options.contrast:
            context = contrast.contexts_of(system, line.prompt, line.instruction)
            jobs.append(contrast.Job(line.where, context, responses))
        else:
            jobs.append(Job(line.where, context_of(system, line), responses))
    if options.contrast:
        by_index = dict(contrast.score_stream(system, jobs, options.contrast))
        scored = [by_index[index] for index in range(len(jobs))]
    else:
        scored = score_all(system, jobs)
    write_lines(options.out, ({"logps": it.logps, "tokens": it.tokens} for it in scored))
    count = sum(len(job.responses) for job in jobs)
    print(f"{options.out}: {len(jobs)} contexts, {count} responses scored")
