"""What `parcae launch` trains on and how: the model's template with options laid over it, and the data."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parcae_cli.errors import UsageError


def training_template(model: str, eval_every: int | None, profile: Path | None = None) -> dict[str, Any]:
    """The content of the model's file, checked, with a profile laid over it; `eval_every` None leaves it.

    Raises:
        InputError: the file is wrong.
    """
    from parcae_cli.catalogue import load_template
    from runtime.planning.model import parse_model

    template = load_template(model)
    if eval_every is not None:
        template = {**template, "training": {**template["training"], "eval_every": eval_every}}
    parse_model(template, model)
    if profile is not None:
        from parcae_cli.measured_profile import with_profile

        template = with_profile(template, profile, model)
    return template


def corpus_of(
    named: list[str], template: Mapping[str, Any]
) -> tuple[tuple[Path, ...], tuple[dict[str, Any], ...]]:
    """What `--data` names: local files, or objects in a store.

    Raises:
        UsageError, InputError, CloudError: as `corpus_files` and `corpus_objects`; or both kinds are named.
    """
    urls = [one for one in named if "://" in one]
    if urls and len(urls) < len(named):
        raise UsageError("--data: local files and objects in a store do not mix", "Give one kind")
    return corpus_files([] if urls else named, template), corpus_objects(urls, template)


def corpus_objects(urls: list[str], template: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The objects that the URLs name, as rows of a request; none where there are no URLs.

    Raises:
        UsageError, InputError: nothing is there, or it is no data for this model.
        CloudError: the store does not let us in, or nodes could not.
    """
    if not urls:
        return ()
    from dataclasses import asdict

    from runtime.control.data_rules import CorpusError, trained_samples
    from runtime.control.data_set import DataSet
    from runtime.control.job.objects import links_to, objects_of, samples_in
    from runtime.planning.model import parse_model

    model = parse_model(template, str(template.get("name")))
    assert model.gpt is not None
    files = objects_of(urls)
    try:
        trained_samples(samples_in(files, model.gpt.vocab, model.gpt.seq), model.training.held_out)
    except CorpusError as error:
        raise UsageError(f"--data: {error}") from None
    links_to(DataSet(files))
    return tuple(asdict(file) for file in files)


def corpus_files(globs: list[str], template: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files that the globs name, sorted, each once; none where there are no globs.

    Raises:
        UsageError: a glob matches no file, or the files are no data for this model.
    """
    if not globs:
        return ()
    files = _files_of(globs)

    from runtime.control.data_rules import CorpusError
    from runtime.engine.data import Corpus
    from runtime.planning.model import parse_model

    model = parse_model(template, str(template.get("name")))
    assert model.gpt is not None
    try:
        corpus = Corpus([str(path) for path in files], model.gpt.seq, model.gpt.vocab)
        corpus.trained_samples(model.training.held_out)
        corpus.digest()
    except CorpusError as error:
        raise UsageError(f"--data: {error}") from None
    return files


def _files_of(globs: list[str]) -> tuple[Path, ...]:
    """The files that the globs name, sorted, each once."""
    found: set[Path] = set()
    for pattern in globs:
        # Path.glob refuses absolute patterns.
        matches = glob.glob(str(Path(pattern).expanduser()), recursive=True)  # noqa: PTH207
        files = [path for match in matches if (path := Path(match)).is_file()]
        if not files:
            raise UsageError(f"--data {pattern}: matches no file", "Quote the glob, and give a path to files")
        for path in files:
            try:
                with path.open("rb") as file:
                    file.read(1)
            except OSError as error:
                raise UsageError(f"--data {pattern}: {path} cannot be read: {error.strerror}") from None
        found.update(path.resolve() for path in files)
    if found and not any(path.stat().st_size for path in found):
        raise UsageError(f"--data {' '.join(globs)}: all files are empty")
    return tuple(sorted(found))
