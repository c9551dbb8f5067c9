namespace Mustafar.Storage;

/// <summary>How far reading or writing a file has come, and whether it is to go on.</summary>
/// <param name="progress">Told the share that is done, 0 to 1, each time that it has grown by a hundredth; nobody if null.</param>
/// <param name="cancellationToken">Cancels the call.</param>
internal sealed class FileTransfer(IProgress<double>? progress, CancellationToken cancellationToken)
{
    private const double Step = 0.01;

    private long _total = 1;
    private long _done;
    private double _reported = -1;

    /// <summary>Says how many bytes there are to read and write.</summary>
    /// <exception cref="OperationCanceledException">It is to stop.</exception>
    internal void Begin(long total)
    {
        (_total, _done) = (Math.Max(1, total), 0);
        Advance(0);
    }

    /// <summary>Counts bytes that are about to be read or written.</summary>
    /// <exception cref="OperationCanceledException">It is to stop.</exception>
    internal void Advance(long bytes)
    {
        cancellationToken.ThrowIfCancellationRequested();
        _done += bytes;
        double share = (double)_done / _total;
        if (share >= _reported + Step && share < 1)
        {
            Report(share);
        }
    }

    /// <summary>Says that all is done.</summary>
    internal void End() => Report(1);

    private void Report(double share) => progress?.Report(_reported = share);
}
