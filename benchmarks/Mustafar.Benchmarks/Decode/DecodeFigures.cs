namespace Mustafar.Benchmarks.Decode;

/// <summary>What was measured of one cache, number of sequences and context; times in milliseconds.</summary>
/// <param name="Step">From the last tokens on the host to the next ones.</param>
/// <param name="Host">The part of a step in which it keeps the calling thread busy before that can wait.</param>
/// <param name="Attention">Attention of all layers with what it appends.</param>
/// <param name="Sampling">Choosing the next tokens.</param>
/// <param name="FirstToken">From a prompt of the whole context to the scores of its next token; of one sequence alone.</param>
/// <param name="ManyTokens">A step of <see cref="StepMeasurement.ManyTokens"/> new tokens at the end of the context; of one sequence alone.</param>
/// <param name="CacheBytes">Bytes reserved for the cache.</param>
/// <param name="PeakBytes">The most bytes of the device that all of this took beside the weights.</param>
/// <param name="Graph">Whether a step is a CUDA graph, and if not, why.</param>
internal sealed record DecodeFigures(
    double Step, double Host, double Attention, double Sampling, double? FirstToken, double? ManyTokens, long CacheBytes, long PeakBytes, string Graph)
{
    /// <summary>Tokens a second of so many sequences.</summary>
    internal double Rate(int batch) => batch / Step * 1e3;
}
