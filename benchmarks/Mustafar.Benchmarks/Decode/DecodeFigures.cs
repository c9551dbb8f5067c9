namespace Mustafar.Benchmarks.Decode;

/// <summary>What was measured for one cache, number of sequences and context; times in milliseconds.</summary>
/// <param name="Step">From the last tokens on the host to the next ones.</param>
/// <param name="Host">How long a step keeps the calling thread busy before the thread can wait.</param>
/// <param name="Attention">Attention of all layers, including what it appends.</param>
/// <param name="Sampling">Choosing the next tokens.</param>
/// <param name="FirstToken">From a prompt of the whole context to the scores of the next token; only for a single sequence.</param>
/// <param name="ManyTokens">A step of <see cref="StepMeasurement.ManyTokens"/> new tokens at the end of the context; only for a single
/// sequence.</param>
/// <param name="CacheBytes">Bytes reserved for the cache.</param>
/// <param name="PeakBytes">Peak memory of all of this on the device, without the weights.</param>
/// <param name="Graph">Whether a step is a CUDA graph, and if not, why.</param>
internal sealed record DecodeFigures(
    double Step, double Host, double Attention, double Sampling, double? FirstToken, double? ManyTokens, long CacheBytes, long PeakBytes, string Graph)
{
    /// <summary>Tokens per second for a number of sequences.</summary>
    internal double Rate(int batch) => batch / Step * 1e3;
}
