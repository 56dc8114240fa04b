"""The job that samples a split of Gaussian activations and checks them against the fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nullsae.activations.gaussian import Gaussian, fit_moments
from nullsae.activations.layout import SplitJob
from nullsae.activations.passes import open_site
from nullsae.activations.preflight import check_disk
from nullsae.activations.store import SiteReader, SiteWriter
from nullsae.core.devices import device_of
from nullsae.core.locking import alone_at
from nullsae.core.moments import Moments
from nullsae.jobs.activations import SampleGaussianParams
from nullsae.jobs.work.making import ROW_BYTES
from nullsae.subjects.gates import STANDARD_ERRORS, Gate, failed, judged, passed, require
from nullsae.subjects.loading import DTYPES

# Below this share of the largest eigenvalue, float64 sums cannot tell how far off a variance is.
MEASURABLE = 1e-10
# Directions in which token means are compared; each costs a float64 per token id.
TOKEN_DIRECTIONS = 16
# With fewer samples, a correlation is far from normal.
MIN_CORRELATED_TOKENS = 64


def sample_gaussian(
    params: SampleGaussianParams,
    *,
    split: str,
    fitted: Path,
    tokens: Path,
    output: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Sample all sites of a split that are missing, in the shards of `cache_activations`.

    Each token's vector is drawn independently from N(mean, covariance) of another variant's
    `sae_train` activations at that site: the trained one's for `gaussian`, V's for `gaussian@V`. A
    context's samples depend only on (seed, subject, variant, draw, site, split, context). A site's
    manifest records the gates that its samples passed, their health before rounding to the storage
    dtype, and what they were fitted to.

    Args:
        params: the rule's slice of the config.
        split: `sae_train` (tokens permuted within shards) or `eval` (in order).
        fitted: manifest of the `sae_train` activations to fit to.
        tokens: manifest of the corpus' split: as many tokens are sampled.
        output: the split's folder; its `manifest.json` is written last.
        progress: called with (tokens done, tokens in total), sites counted one by one.

    Returns:
        The sites that were sampled now.

    Raises:
        UserError: the activations to fit to are missing, damaged or from another config; too
            little disk space; a failed gate; or another process that has been sampling the same
            for more than a minute. Names the file, or the site and the gate.
    """
    torch.set_num_threads(params.compute.threads)
    with alone_at([SplitJob.lock(output)]):
        job = SplitJob(params, split, fitted, tokens, output)
        if job.missing:
            n_tokens = job.shards[-1].stop * job.corpus.input_ids.shape[1]
            key = params.fitted_activations_key
            item = DTYPES[params.dtype].itemsize if params.keep else 0
            device = device_of(params.compute.device)
            readers = [open_site(fitted, site, key=key, device=device) for site in job.missing]
            row_bytes = sum(reader.d_model * item + ROW_BYTES for reader in readers)
            check_disk(output, n_tokens * row_bytes)
            for index, (site, reader) in enumerate(zip(job.missing, readers, strict=True)):
                for done in _sample_site(job, site, reader):
                    if progress is not None:
                        progress(index * n_tokens + done, len(job.missing) * n_tokens)
        job.finish()
    return job.missing


def _sample_site(
    job: SplitJob[SampleGaussianParams], site: str, reader: SiteReader
) -> Iterator[int]:
    """Write one site; yield the tokens done after each shard."""
    params, folder = job.params, job.folder(site)
    device, dtype = device_of(params.compute.device), DTYPES[params.dtype]
    fit = fit_moments(reader, device)
    gaussian = Gaussian.fitted_to(fit, device)
    check = SampleCheck(gaussian, int(job.corpus.manifest["vocab_size"]))
    ids = torch.from_numpy(job.corpus.input_ids)
    length = ids.shape[1]
    of = (length, params.seed, params.keys, site, job.split)

    def again(index: int) -> Tensor:
        samples = (x.to("cpu", dtype) for x in gaussian.contexts(job.shards[index], *of))
        return torch.cat(list(samples))[job.rows(index)[1]]

    writer = SiteWriter(folder, dtype=params.dtype, again=job.again(again))
    for index, contexts in enumerate(job.shards):
        parts = []
        samples = gaussian.contexts(contexts, *of)
        for context, x in zip(contexts, samples, strict=True):
            check.add(x, ids[context].long())
            parts.append(x.to("cpu", dtype))
        writer.write(index, torch.cat(parts), *job.rows(index))
        yield contexts.stop * length
    gates = check.gates()
    require(gates, str(folder))
    source = {"key": reader.manifest["key"], "n_tokens": fit.n, "shrinkage": gaussian.shrinkage}
    made = {"made_from": job.made_from(keys=params.keys.model_dump())} if not params.keep else {}
    health = check.moments.health()
    job.finish_site(writer, site, fitted=source, gates=gates, health=health, **made)


class SampleCheck:
    """Sums over samples, and the gates that check whether they follow a Gaussian.

    In the eigenbasis of R, divided by the standard deviations, samples are independent N(0, 1). So
    each statistic below has a known distribution; it is converted to standard errors of a normal
    one, exactly or nearly so for any number of samples.
    """

    def __init__(self, gaussian: Gaussian, vocab_size: int) -> None:
        self.gaussian = gaussian
        self.moments = Moments(len(gaussian.mean), device=gaussian.mean.device)
        eigenvalues = gaussian.eigenvalues
        measured = eigenvalues > MEASURABLE * eigenvalues[-1]
        inverse = torch.where(gaussian.scale > 0, 1 / gaussian.scale, 1.0)
        basis = inverse[:, None] * gaussian.eigenvectors
        self.whiten = basis[:, measured] / eigenvalues[measured].sqrt()
        self.silent = basis[:, ~measured]
        self._leading = self.whiten[:, -TOKEN_DIRECTIONS:]
        self._by_token = self._leading.new_zeros(vocab_size, self._leading.shape[1])
        self._counts = self._leading.new_zeros(vocab_size)

    def add(self, x: Tensor, ids: Tensor) -> None:
        """Add samples float64 [n, d_model], and the token ids int64 [n] at their positions."""
        self.moments.add(x)
        ids = ids.to(x.device)
        self._by_token.index_add_(0, ids, (x - self.gaussian.mean) @ self._leading)
        self._counts.index_add_(0, ids, torch.ones_like(ids, dtype=torch.float64))

    def gates(self) -> list[Gate]:
        """Check: finite; mean, covariance and token means within 6 standard errors, jointly too."""
        mean, covariance = self.moments.mean(), self.moments.covariance()
        if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            return [failed("finite", "NaN or infinite samples")]
        n, whiten, silent = self.moments.n, self.whiten.cpu(), self.silent.cpu()
        shift = mean - self.gaussian.mean.cpu()
        if not whiten.shape[1]:
            # A site where all tokens are the same: all samples must be, too.
            holds = not bool(covariance.any() or shift.any())
            return [
                passed("finite", f"{n} samples"),
                judged("constant", holds, "all samples are the fitted mean"),
            ]
        second = covariance + torch.outer(shift, shift)
        # Each entry of the whitened sample mean [r] times sqrt(n) is N(0, 1).
        white = shift @ whiten
        joint = _standard_errors(n * float(white.square().sum()), len(white))
        seen = self._counts > 0
        scores = self._by_token[seen] / self._counts[seen].sqrt()[:, None]
        deviation = _standard_errors(float(scores.square().sum()), scores.numel())
        return [
            passed("finite", f"{n} samples"),
            _gate("mean", [white * math.sqrt(n), joint], f"{len(white)} directions and jointly"),
            self._covariance_gate(whiten.t() @ second @ whiten, silent.t() @ second @ silent),
            _gate("token identity", [deviation], f"means of {int(seen.sum())} token ids"),
        ]

    def _covariance_gate(self, white: Tensor, silent: Tensor) -> Gate:
        """Check second moments about the fitted mean: whitened [r, r], and the directions without.

        n * white is Wishart: n times its diagonal is chi-square with n degrees of freedom, n times
        its trace with n * r, and for its correlations -(n - 1) log(1 - c^2) is nearly the square
        of a standard normal (Wallace 1959 for the t distribution that they follow).
        """
        n, variances = self.moments.n, white.diagonal()
        worst = float(silent.diagonal().max()) if len(silent) else 0.0
        if worst > 10 * MEASURABLE * float(self.gaussian.eigenvalues[-1]):
            return failed("covariance", f"variance {worst:.3g} where the fitted one has none")
        deviations = [
            _standard_errors(n * variances, n),
            _standard_errors(n * float(variances.sum()), n * len(white)),
        ]
        if n >= MIN_CORRELATED_TOKENS:
            std = variances.sqrt()
            pairs = torch.triu_indices(len(white), len(white), offset=1)
            correlation = (white / std[:, None] / std)[pairs[0], pairs[1]]
            deviations.append((-(n - 1) * torch.log1p(-correlation.square())).sqrt())
        return _gate("covariance", deviations, f"{len(white)} variances, their sum and pairs")


def _standard_errors(chi_square: Tensor | float, degrees: int) -> Tensor:
    """Return a chi-square value's deviation in standard errors (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    ratio = torch.as_tensor(chi_square, dtype=torch.float64) / degrees
    return (ratio.pow(1 / 3) - (1 - spread)) / math.sqrt(spread)


def _gate(name: str, deviations: Sequence[Tensor], what: str) -> Gate:
    """Check the largest deviation of each kind against 6 standard errors of one draw.

    The largest of m deviations may be sqrt(36 + 2 log m): by the union bound, it exceeds that no
    more often than one draw exceeds 6.
    """
    found = [
        (float(x.abs().max()), math.sqrt(STANDARD_ERRORS**2 + 2 * math.log(x.numel())))
        for x in deviations
        if x.numel()
    ]
    details = ", ".join(f"{largest:.2f} of {limit:.2f}" for largest, limit in found)
    holds = all(largest <= limit for largest, limit in found)
    return judged(name, holds, f"{what}: at most {details} standard errors")
