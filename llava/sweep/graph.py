"""The steps of a sweep: which there are, what each waits for, and which the policy adds.

    prepare -> features -> C of all
            -> training features -> stage 1 -> A (likelihood; tokens -> cosine)
    policy proposes -> stage 1 and A, stage 2 and benchmarks, of what it proposes -> asked again
    report

Later steps depend on what earlier ones found, so the graph is grown in stages (`Sweep.stages`):
each is a list of steps, and the next one is asked for when all of it has come to an end.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llava import catalog
from llava.errors import LawError
from llava.files import folder_name, read_json
from llava.model.multimodal_encoder.frames import frame_of
from llava.sweep.config import Flags, SweepConfig
from llava.sweep.flags import aliases, train_words, words
from llava.sweep.space import (
    Candidate,
    awaited,
    candidates,
    extra_names,
    names,
    references,
)
from llava.sweep.step import Step, file_name, law, listed_steps

TABLE = "results.csv"
REPORT = "report.html"
SUMMARY = "summary.json"
STORES = {"features": "features/correspondence", "train-features": "features/training"}
"""Kind of step -> feature store, below the run folder."""
PATHS = ("data_path", "config", "deepspeed", "fsdp_config")
"""Flags of `law train` that name files whose content counts."""


@dataclass(frozen=True)
class Round:
    """What one proposal of the policy led to."""

    number: int
    json: str
    stage1: list[str]
    stage2: list[str]
    stop: bool
    reason: str


@dataclass
class Sweep:
    """A sweep's graph as it grows.

    Attributes:
        config: the YAML's.
        done: whether the step of this name has come to a good end.
        were_done: whether these steps, were they in the graph, would be found to be done.
        found: candidates by name, from when `prepare` is done.
        rounds: the policy's proposals until now.
    """

    config: SweepConfig
    done: Callable[[str], bool]
    were_done: Callable[[list[Step]], bool]
    found: dict[str, Candidate] = field(default_factory=dict)
    references: dict[str, Candidate] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    _grown: dict[str, Step] = field(default_factory=dict)

    def stages(self) -> Iterator[list[Step]]:
        """Lists of steps; a generator, to be gone on with when the list before has ended."""
        yield self._add(listed_steps(self.config.prepare))
        texts = names(self.config)
        if not all(self.done(step.name) for step in self._prepared):
            texts = [text for text in texts if not awaited(self.config, text)]
            lost = [text for text in extra_names(self.config) if awaited(self.config, text)]
            if lost or not texts:
                return
        self.found = {c.name: c for c in candidates(self.config, texts)}
        self.references = {c.name: c for c in references(self.config)}
        if not self.found:
            raise LawError("no representation is left; what each lacks stands above")
        yield self._add(self._scores())
        if self.config.policy.stage2 == "all":
            yield self._add(self._proposed([], list(self.found)))
        else:
            yield from self._proposals()
        yield self._add(self._listed_last())
        yield self._add([self._report()])

    def _add(self, steps: list[Step]) -> list[Step]:
        """Those of the steps that are new, which are remembered."""
        new = {step.name: step for step in steps if step.name not in self._grown}
        self._grown |= new
        return list(new.values())

    def _after_makers(self, steps: list[Step]) -> list[Step]:
        """The steps, each behind those of `prepare` that make what its command names."""
        return [replace(step, after=(*self._makers(step), *step.after)) for step in steps]

    def _makers(self, step: Step) -> Iterator[str]:
        words = " ".join(step.command)
        for made in self._prepared:
            places = [made.folder] if made.folder else [Path(o).parts[0] for o in made.outputs]
            named = (re.search(rf"{re.escape(self._path(p))}(?![\w.-])", words) for p in places)
            if not places or any(named):  # one that does not say what it makes may make anything
                yield made.name

    def _path(self, relative: str) -> str:
        return str(self.config.run_dir / relative)

    @cached_property
    def _prepared(self) -> list[Step]:
        return [step for step in listed_steps(self.config.prepare) if not step.left_out]

    # scores ------------------------------------------------------------------------------------

    def _scores(self) -> list[Step]:
        """Features, C of all, and A of those that get it before the policy is asked."""
        steps = [*self._c_features(), self._c_score()]
        if self.config.features:
            steps += self._training_features(self._aligned_first)
        for name in self._aligned_first:
            steps += self._alignment(name)
        return self._after_makers(steps)

    @cached_property
    def _aligned_first(self) -> list[str]:
        """What gets its A scores before the policy is asked."""
        policy = self.config.policy
        if policy.stage1 == "all":
            first = list(self.found)
        elif policy.first:
            named = [c.name for c in candidates(self.config, policy.first)]
            first = [name for name in named if name in self.found]
        else:
            first = [name for name, c in self.found.items() if len(c.representation.parts) == 1]
        return list(dict.fromkeys([*self.references, *first]))

    def _candidate(self, name: str) -> Candidate:
        return self.found.get(name) or self.references[name]

    def _c_features(self) -> list[Step]:
        c = self.config.correspondence
        layer = self.config.stage1.get("mm_vision_select_layer")
        flags = c.features if layer is None else {"layer": layer} | c.features
        return [
            self._features(
                f"features {tower}",
                "features",
                tower,
                candidate,
                c.image_folder,
                flags,
            )
            for tower, candidate in self._towers(self.found).items()
        ]

    def _towers(self, among: Mapping[str, Candidate]) -> dict[str, Candidate]:
        """Name of every tower that is needed -> a candidate that it is part of."""
        return {tower: c for c in reversed(list(among.values())) for tower in c.towers}

    def _training_features(self, wanted: list[str]) -> list[Step]:
        steps: dict[str, Step] = {}
        asked = {"layer": "mm_vision_select_layer", "select": "mm_vision_select_feature"}
        read = {flag: self.config.stage1.get(key) for flag, key in asked.items()}
        read = {flag: value for flag, value in read.items() if value is not None}
        for name in wanted:
            candidate, frame = self._candidate(name), self._frame(name)
            for tower in candidate.towers:
                step = self._features(
                    self._fed_by(tower, frame),
                    "train-features",
                    tower,
                    candidate,
                    self.config.features.images,
                    {"frame": frame} | read | self.config.features.flags,
                )
                steps.setdefault(step.name, step)
        return list(steps.values())

    def _frame(self, name: str) -> str:
        """How images meet the towers' inputs when training on a candidate."""
        flags = self.config.stage1
        alone = len(self._candidate(name).representation.parts) == 1
        geometry = "own" if alone else flags.get("mm_vision_geometry") or "shared"
        return frame_of(flags.get("image_aspect_ratio"), geometry)

    def _fed_by(self, tower: str, frame: str) -> str:
        """The name of the step that stores a tower's tokens for training."""
        return f"train-features {tower} {frame}"

    def _features(
        self, name: str, kind: str, tower: str, candidate: Candidate, images: Path, flags: Flags
    ) -> Step:
        listing = f"{STORES[kind]}/{file_name(name)}.json"
        part = candidate.towers[tower].id
        used = [pair for pair in candidate.aliases if pair[0] == part]
        command = ["features", "--images", str(images), "--model", tower]
        command += ["--out", self._path(STORES[kind]), "--json", self._path(listing)]
        return Step(
            name=name,
            kind=kind,
            command=law(*command, *aliases(used), *words(flags)),
            outputs=(listing,),
            listing=listing,
            inputs=self._outside([images]),
            sources=self._outside(source for _, source in used),
        )

    def _c_score(self) -> Step:
        c = self.config.correspondence
        models = [word for name in self.found for word in ("--model", name)]
        used = dict(pair for candidate in self.found.values() for pair in candidate.aliases)
        command = ["c-score", "--data", str(c.data), "--features", self._path(STORES["features"])]
        command += ["--json", self._path("c_score/c_score.json")]
        command += ["--results", self._path("c_score/results.csv")]
        return Step(
            name="c-score",
            kind="c-score",
            command=law(*command, *words(c.flags), *models, *aliases(used.items())),
            after=tuple(f"features {t}" for t in self._towers(self.found)),
            outputs=("c_score/c_score.json", "c_score/results.csv"),
            rows="c_score/results.csv",
            measures=tuple(self.found),
            folder="c_score",
            inputs=self._outside([c.data]),
        )

    def _alignment(self, name: str) -> list[Step]:
        """Stage 1 of a candidate, and the A scores that it is for."""
        steps = [self._stage1(name)]
        if self.config.alignment.nll and name in self.found:
            steps.append(self._nll(name))
        if self.config.alignment.cosine:
            steps += [self._dump(name)] + [self._cosine(name)] * (name in self.found)
        return steps

    def _stage1(self, name: str) -> Step:
        folder = f"stage1/{file_name(name)}"
        flags = self._common(name, self.config.stage1) | {
            "tune_mm_mlp_adapter": True,
            "output_dir": self._path(folder),
        }
        return self._training(f"stage1 {name}", "stage1", name, flags, folder, self._fed(name))

    def _fed(self, name: str) -> tuple[str, ...]:
        """The steps that a training on a candidate waits for."""
        if not self.config.features:
            return ()
        steps = [self._fed_by(tower, self._frame(name)) for tower in self._candidate(name).towers]
        return tuple(steps)

    def _common(self, name: str, flags: Flags) -> Flags:
        """Flags of a training: what it is of, the YAML's over that, where tokens come from."""
        aliases = [f"{tower}={source}" for tower, source in self._candidate(name).aliases]
        made: dict[str, Any] = {"model_name_or_path": self.config.llm, "vision_tower": name}
        if aliases:
            made["tower_alias"] = aliases
        if self.config.features:
            made["vision_features"] = "store"
            made["feature_store"] = self._path(STORES["train-features"])
        return made | flags

    def _training(
        self, name: str, kind: str, of: str, flags: Flags, folder: str, after: tuple[str, ...]
    ) -> Step:
        inside = ("mm_projector.bin",) if kind == "stage1" else ("*.safetensors",)
        inputs = [flags[key] for key in PATHS if isinstance(flags.get(key), str)]
        return Step(
            name=name,
            kind=kind,
            command=law("train", *train_words(flags)),
            after=after,
            outputs=tuple(f"{folder}/{one}" for one in ("config.json", *inside)),
            folder=folder,
            inputs=self._outside(inputs),
            sources=self._outside([self.config.llm, *(s for _, s in self._candidate(of).aliases)]),
            representation=of,
            processes=self._processes(kind),
            disposable=kind == "stage2",
        )

    def _nll(self, name: str) -> Step:
        folder = f"nll/{file_name(name)}"
        flags = self._common(name, self.config.stage1 | self.config.alignment.nll.flags) | {
            "pretrain_mm_mlp_adapter": self._path(f"stage1/{file_name(name)}/mm_projector.bin"),
            "output_dir": self._path(folder),
            "results": self._path(f"{folder}/results.csv"),
        }
        flags.pop("deepspeed", None)  # scoring updates nothing and takes none
        data = [flags[key] for key in ("data_path",) if isinstance(flags.get(key), str)]
        return Step(
            name=f"nll {name}",
            kind="nll",
            command=law("a-score", "nll", *train_words(flags)),
            after=(f"stage1 {name}",),
            outputs=(f"{folder}/a_score.json", f"{folder}/results.csv"),
            rows=f"{folder}/results.csv",
            measures=(name,),
            folder=folder,
            inputs=self._outside(data),
            representation=name,
            processes=self._processes("nll"),
        )

    def _dump(self, name: str) -> Step:
        cosine = self.config.alignment.cosine
        command = ["a-score", "dump", "--run", self._path(f"stage1/{file_name(name)}")]
        command += ["--benchmark", *cosine.benchmarks, "--as", name]
        if cosine.images:
            command += ["--images", *(f"{key}={path}" for key, path in cosine.images.items())]
        command += ["--out", self._path("dumps")]
        command += aliases(self._candidate(name).aliases)
        return Step(
            name=f"dump {name}",
            kind="dump",
            command=law(*command, *words(cosine.flags)),
            after=(f"stage1 {name}",),
            outputs=tuple(f"dumps/{b}/{folder_name(name)}/*" for b in self._shown()),
            inputs=self._outside(cosine.images.values()),
            representation=name,
            processes=self._processes("dump"),
        )

    def _shown(self) -> list[str]:
        """The folders of the benchmarks whose images the cosine A score looks at."""
        return [folder_name(b) for b in benchmark_ids(self.config.alignment.cosine.benchmarks)]

    def _cosine(self, name: str) -> Step:
        cosine = self.config.alignment.cosine
        folder = f"cosine/{file_name(name)}"
        command = ["a-score", "cosine", "--base_folder", self._path("dumps")]
        command += ["--targets", name, "--references", *self.references]
        command += ["--benchmark", *benchmark_ids(cosine.benchmarks)]
        command += ["--results", self._path(f"{folder}/results.csv")]
        return Step(
            name=f"cosine {name}",
            kind="cosine",
            command=law(*command),
            after=tuple(dict.fromkeys(f"dump {one}" for one in (name, *self.references))),
            outputs=(f"{folder}/results.csv",),
            rows=f"{folder}/results.csv",
            measures=(name,),
            folder=folder,
            representation=name,
        )

    # finetuning --------------------------------------------------------------------------------

    def _finetuning(self, name: str) -> list[Step]:
        """Stage 2 of a candidate and its benchmarks."""
        key = file_name(name)
        flags = self._common(name, self.config.stage2) | {
            "pretrain_mm_mlp_adapter": self._path(f"stage1/{key}/mm_projector.bin"),
            "output_dir": self._path(f"stage2/{key}"),
        }
        after = (f"stage1 {name}", *self._fed(name))
        stage2 = self._training(f"stage2 {name}", "stage2", name, flags, f"stage2/{key}", after)
        return [stage2, self._evaluate(name)]

    def _evaluate(self, name: str) -> Step:
        key = file_name(name)
        evaluation = self.config.evaluation
        command = ["evaluate", "--run", self._path(f"stage2/{key}"), "--tasks", *evaluation.tasks]
        command += ["--out", self._path(f"evaluate/{key}")]
        command += ["--results", self._path(f"evaluate/{key}/results.csv")]
        command += aliases(self._candidate(name).aliases)
        if self._processes("evaluate") > 1:
            command += ["--processes", str(self._processes("evaluate"))]
        if self.config.features and self.config.features.evaluate:
            command += ["--model-args", f"features={self._path('features/evaluate')}"]
        return Step(
            name=f"evaluate {name}",
            kind="evaluate",
            command=law(*command, *words(evaluation.flags)),
            after=(f"stage2 {name}",),
            outputs=(f"evaluate/{key}/results.csv",),
            rows=f"evaluate/{key}/results.csv",
            measures=(name,),
            folder=f"evaluate/{key}",
            representation=name,
            processes=self._processes("evaluate"),
        )

    def _processes(self, kind: str) -> int:
        return self.config.launch.gpus_per_step.get(kind, 1)

    # the policy --------------------------------------------------------------------------------

    def _proposals(self) -> Iterator[list[Step]]:
        """Rounds until the policy says stop, or proposes nothing new."""
        tuned: set[str] = set()
        aligned = set(self._aligned_first)
        for number in range(1, 2 * len(self.found) + 2):
            step = self._propose(number, self._in_vain(aligned, tuned))
            if not self.were_done([step]):
                # asked anew, as when something was mended or added: what was finetuned in other
                # rounds is known all the same, and stays in the table
                earlier = self._finetuned_before(tuned)
                aligned |= set(earlier)
                tuned |= set(earlier)
                yield self._add(self._proposed(earlier, earlier))
                step = self._propose(number, self._in_vain(aligned, tuned))
            yield self._add([step])
            if not self.done(step.name):
                return
            answer = read_json(self.config.run_dir / step.outputs[0])
            stage1 = [name for name in self._known(answer, "stage1") if name not in aligned]
            stage2 = [name for name in self._known(answer, "stage2") if name not in tuned]
            stop = bool(answer.get("stop"))
            reason = str(answer.get("reason", ""))
            self.rounds.append(Round(number, step.outputs[0], stage1, stage2, stop, reason))
            if stop or not stage1 + stage2:
                return
            aligned |= set(stage1)
            tuned |= set(stage2)
            yield self._add(self._proposed(stage1, stage2))

    def _finetuned_before(self, tuned: set[str]) -> list[str]:
        """Candidates whose stage 2 and benchmarks are done, and that no round has named yet."""
        left = [name for name in self.found if name not in tuned]
        return [name for name in left if self.were_done(self._proposed([name], [name]))]

    def _proposed(self, stage1: list[str], stage2: list[str]) -> list[Step]:
        """The steps that give these candidates their A scores, and those their performance."""
        steps = self._training_features(stage1) if self.config.features else []
        steps += [step for name in stage1 for step in self._alignment(name)]
        steps += [step for name in stage2 for step in self._finetuning(name)]
        return self._after_makers(steps)

    def _in_vain(self, aligned: set[str], tuned: set[str]) -> list[str]:
        """Candidates that were tried and failed: to propose them again would lead nowhere."""
        failed = {name for name in tuned if not self.done(f"evaluate {name}")}
        for name in aligned & self.found.keys():
            if not all(self.done(step.name) for step in self._alignment(name)):
                failed.add(name)
        return [name for name in self.found if name in failed]

    def _known(self, answer: Mapping[str, Any], key: str) -> list[str]:
        """Candidates that the policy names."""
        asked = answer.get(key, [])
        if not isinstance(asked, list) or not all(isinstance(name, str) for name in asked):
            raise LawError(f"the policy's {key}: expected a list of names, got {asked!r}")
        unknown = [name for name in asked if name not in self.found]
        if unknown:
            raise LawError(
                f"the policy proposes {', '.join(unknown)}, which is no candidate of this sweep; "
                "its tables hold rows of something else"
            )
        return list(asked)

    def _propose(self, number: int, without: list[str]) -> Step:
        policy = self.config.policy
        key = f"policy/{number:03}"
        command = ["policy", "propose", "--table", self._path(f"{key}.csv")]
        command += ["--a", self.config.alignment.law, "--at-once", str(policy.at_once)]
        command += ["--benchmark", *benchmark_ids(self.config.evaluation.tasks)]
        command += ["--json", self._path(f"{key}.json")]
        if policy.stage1 == "policy":
            command += ["--estimate-a"]
        for name, most in (("stage1", policy.most_stage1), ("stage2", policy.most_stage2)):
            if most is not None:
                command += [f"--most-{name}", str(most)]
        for name in without:
            command += ["--without", name]
        measured = [step.name for step in self._grown.values() if step.rows]
        return Step(
            name=f"propose {number}",
            kind="propose",
            command=law(*command, *words(policy.flags)),
            settled=tuple(measured),
            table=f"{key}.csv",
            outputs=(f"{key}.json",),
        )

    # the end -----------------------------------------------------------------------------------

    def _listed_last(self) -> list[Step]:
        """The YAML's own last steps; each waits for everything before."""
        before = tuple(self._grown)
        return [replace(step, settled=before) for step in listed_steps(self.config.finish)]

    def _report(self) -> Step:
        command = ["report", "--table", self._path(TABLE), "--a", self.config.alignment.law]
        command += ["--sweep", self._path(SUMMARY), "--out", self._path(REPORT)]
        return Step(
            name="report",
            kind="report",
            command=law(*command, *words(self.config.report)),
            settled=tuple(self._grown),
            table=TABLE,
            outputs=(REPORT,),
        )

    def _outside(self, paths: Any) -> tuple[str, ...]:
        """Those that are not in the run folder, whose steps vouch for them."""
        found = [str(path) for path in paths if path]
        return tuple(p for p in found if not Path(p).is_relative_to(self.config.run_dir))


def benchmark_ids(tasks: list[str]) -> list[str]:
    """What results tables call these benchmarks; a set's members for its name."""
    sets = catalog.benchmark_sets()
    found = [one for task in tasks for one in sets.get(task, [task])]
    return list(dict.fromkeys(catalog.benchmark_id(_without_unit(name)) for name in found))


def _without_unit(name: str) -> str:
    """`task:metric` of `task:metric:unit`."""
    return ":".join(name.split(":")[:2])
