"""What a stream came to, for people and as JSON: figures, and the reasons for mode and policy."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgetta.cli.tables import bytes_text, seconds_text

if TYPE_CHECKING:
    from edgetta.adaptation.step_rate import RateChoice
    from edgetta.runtime import Runtime
    from edgetta.sources import Source
    from edgetta.state_files import Saver
    from edgetta.stream import Summary

NAMED = 5
"""So many skipped frames and classes are named to people; the JSON has more."""


@dataclass(frozen=True)
class RunReport:
    """A stream that has ended, and how it was run."""

    runtime: Runtime
    source: Source
    summary: Summary
    batch: int
    ended: BaseException | None  # None: the end of the source, or the limit
    batch_chosen: bool  # by edgetta
    saver: Saver | None = None

    def facts(self) -> list[tuple[str, str]]:
        """Lines for the terminal."""
        s = self.summary
        per_frame = seconds_text(s.step_seconds / s.frames) if s.frames else "-"
        speed = f"{s.frames / s.seconds:,.1f} frames/s" if s.seconds and s.frames else "-"
        facts = [
            ("frames", f"{s.frames:,} predicted{self._ending()}"),
            ("resumed", f"behind {s.resumed:,} frames that have rows already" if s.resumed else ""),
            ("dropped", f"{s.dropped:,}, which newer ones replaced" if s.dropped else ""),
            ("skipped", self._skipped()),
            ("error", self._error()),
            ("estimate", self._estimate()),
            ("entropy", f"{s.mean_entropy:.4f} nats on average" if s.frames > s.not_finite else ""),
            ("classes", self._classes()),
            ("adaptation", self._adaptation()),
            ("time", f"{per_frame} per frame for prediction and adaptation; {speed} with reading and writing"),
            ("engine", self._engine()),
            ("batch", f"{self.batch}{self._batch_reason()}"),
            ("BatchNorm", self.batch_norm_reason() if self.runtime.bundle.has_batch_norm else ""),
            ("kept bytes", self._kept()),
            ("memory", self._memory()),
            ("saves", self._saves()),
        ]
        return [(name, value) for name, value in facts if value]

    def as_json(self) -> dict[str, Any]:
        """The same for programs: plain values, None for what is not known."""
        import edgetta

        s, bundle = self.summary, self.runtime.bundle
        adapter = self.runtime.adapter
        return {
            "bundle": {"name": bundle.name, "path": str(bundle.path), "identity": bundle.identity},
            "source": self.source.description,
            "ended": self._how_it_ended(),
            "frames": s.frames,
            "labelled": s.labelled,
            "errors": s.errors,
            "error_rate": s.error_rate,
            "estimated_error": s.estimated_error,
            "skipped": s.skipped,
            "dropped": s.dropped,
            "skipped_frames": [{"name": f.name, "reason": f.reason} for f in s.skipped_frames],
            "mean_entropy": None if math.isnan(s.mean_entropy) else s.mean_entropy,
            "not_finite": s.not_finite,
            "classes": {self._name(k): s.classes[k] for k in sorted(s.classes)},
            "steps": s.steps,
            "adapted": s.adapted,
            "empty": s.empty,
            "refused": s.refused,
            "counters": adapter.state.counters(),
            "seconds": s.seconds,
            "step_seconds": s.step_seconds,
            "seconds_per_frame": s.step_seconds / s.frames if s.frames else None,
            "engine": self._engine_name(),
            "batch": self.batch,
            "learning_rate": self._rate().rate,
            "learning_rate_reason": self._rate().reason,
            "batch_norm": self.runtime.config.batch_norm,
            "batch_norm_reason": self.batch_norm_reason(),
            "evidence": self._evidence(),
            "changes": self.runtime.adapter.state.stream.changes,
            "agreement": s.agreement,
            "kept_bytes": s.kept_bytes,
            "memory": self.memory_as_json(),
            "saves": self.saves_as_json(),
            "adaptation": asdict(self.runtime.config),
            "versions": {"edgetta": edgetta.__version__},
        }

    def batch_norm_reason(self) -> str:
        """The statistics policy, and what came of it."""
        config, adapter = self.runtime.config, self.runtime.adapter
        if not self.runtime.engine.programs.statistics.size:
            return "none in this network"
        if config.batch_norm == "source":
            return "source: as shipped, whatever the stream shows"
        if config.batch_norm == "batch":
            return "batch: of each batch alone"
        changes = adapter.state.stream.changes
        text = f"stream: shift followed {self._evidence():.0%}, changed {changes:,} time{'' if changes == 1 else 's'}"
        return text if adapter.normaliser.knows_content else f"{text}; what content explains was not measured"

    def _evidence(self) -> float:
        adapter = self.runtime.adapter
        return adapter.normaliser.evidence(adapter.state.stream)

    def memory_as_json(self) -> dict[str, Any]:
        """What keeping the budget came to: planned, measured, and every change."""
        plan, record = self.runtime.plan, self.runtime.keeper.record
        return {
            "plan": None if plan is None else plan.to_json(),
            "measured_peak_bytes": record.peak or None,
            "doubts": list(record.doubts),
            "over_budget": record.over,
            "failures": record.failures,
            "only_predicted": record.predicted,
            "split": record.split,
            "down": record.down,
            "up": record.up,
            "changes": [
                {
                    "step": change.step,
                    "direction": change.direction,
                    "before": change.before.to_json(),
                    "after": change.after.to_json(),
                    "reason": change.reason,
                }
                for change in record.changes
            ],
        }

    def saves_as_json(self) -> dict[str, Any] | None:
        """How the state was saved, and what that costs the disk; None where it was not to be."""
        saver = self.saver
        if saver is None:
            return None
        return {
            "saves": saver.saves,
            "failures": saver.failures,
            "bytes": saver.written,
            "bytes_a_day": round(saver.bytes_a_day),
        }

    def _saves(self) -> str:
        saver = self.saver
        if saver is None:
            return ""
        words = f"{saver.saves:,}, {bytes_text(saver.written)}: {bytes_text(saver.bytes_a_day)} a day at this pace"
        return words + (f"; {saver.failures:,} failed" if saver.failures else "")

    def _how_it_ended(self) -> str:
        from edgetta.interruption import Terminated

        if self.ended is None:
            return "done"
        if isinstance(self.ended, KeyboardInterrupt):
            return self.ended.told if isinstance(self.ended, Terminated) else "interrupted"
        return f"failed: {self.ended or type(self.ended).__name__}"

    def _ending(self) -> str:
        ended = self._how_it_ended()
        if ended == "done":
            return ""
        return " until it failed" if ended.startswith("failed") else f" until it was {ended}"

    def _skipped(self) -> str:
        s = self.summary
        if not s.skipped:
            return "none"
        lines = [f"{s.skipped:,}"] + [f"  {frame.name}: {frame.reason}" for frame in s.skipped_frames[:NAMED]]
        if s.skipped > NAMED:
            lines.append(f"  and {s.skipped - NAMED:,} more")
        return "\n".join(lines)

    def _error(self) -> str:
        s = self.summary
        if s.error_rate is None:
            return ""
        return f"{100 * s.error_rate:.2f} % ({s.errors:,} of {s.labelled:,} labelled frames)"

    def _classes(self) -> str:
        counts = sorted(self.summary.classes.items(), key=lambda item: (-item[1], item[0]))
        # "7 20" would be two numbers: a class without a name is told to be one.
        mark = "class {}: {:,}" if self.runtime.bundle.classes is None else "{} {:,}"
        named = ", ".join(mark.format(self._name(k), count) for k, count in counts[:NAMED])
        return named + (f", and {len(counts) - NAMED} more classes" if len(counts) > NAMED else "")

    def _estimate(self) -> str:
        s = self.summary
        if s.estimated_error is None:
            return ""
        return f"{100 * s.estimated_error:.1f} % error, in the latest {len(s.recent_doubts):,} frames, without labels"

    def _adaptation(self) -> str:
        s, config = self.summary, self.runtime.config
        if config.when == "off":
            return "off"
        count = f"{s.adapted:,} update{'' if s.adapted == 1 else 's'} in {s.steps:,} step{'' if s.steps == 1 else 's'}"
        chosen = self._rate()
        words = [f"{count} ({config.when}, learning rate {chosen.rate:.3g}: {chosen.reason})"]
        if s.empty:
            words.append(
                f"{s.empty:,} in which no frame passed the entropy filter, so that only the regulariser acted"
            )
        if s.refused:
            words.append(f"{s.refused:,} refused because something was not finite")
        return "; ".join(words)

    def _rate(self) -> RateChoice:
        adapter = self.runtime.adapter
        return adapter.learner.rate.choice(adapter.update_images(self.batch), adapter.state.damping)

    def _engine_name(self) -> str:
        return self.runtime.engine.name

    def _engine(self) -> str:
        return self._engine_name()

    def _batch_reason(self) -> str:
        if not self.batch_chosen:
            return ""
        if self.source.length is None:
            return " (a live source: every frame is predicted at once; --batch for more)"
        return " (all frames are there already; --batch for another)"

    def _kept(self) -> str:
        count = self.summary.kept_bytes
        return f"{bytes_text(count)} between forward and backward of an update" if count else ""

    def _memory(self) -> str:
        """Planned, measured, and what was done to stay inside."""
        from edgetta.memory.sizes import size_text

        plan, record = self.runtime.plan, self.runtime.keeper.record
        lines = [f"the budget may not be kept: {doubt}" for doubt in record.doubts]
        if plan is not None:
            measured = f"{size_text(record.peak)} measured at most" if record.peak else "not measured"
            lines.append(f"{size_text(plan.cost.peak)} planned, {measured}, budget {size_text(plan.budget)}")
        for count, what in (
            (record.over, "took more than the budget"),
            (record.failures, "ran out of memory: undone, and the images predicted"),
            (record.predicted - record.failures, "only predicted, for want of memory"),
            (record.split, "were split"),
        ):
            if count:
                lines.append(f"{count:,} step{'' if count == 1 else 's'} {what}")
        if record.changes:
            lines.append(f"{record.down:,} times down and {record.up:,} up:")
            lines += [f"  {change.told()}" for change in record.changes[:NAMED]]
        if len(record.changes) > NAMED:
            lines.append(f"  and {record.down + record.up - NAMED:,} more")
        return "\n".join(lines)

    def _name(self, number: int) -> str:
        names = self.runtime.bundle.classes
        return str(number) if names is None else names[number]
