namespace Mustafar.Storage;

/// <summary>Progress and cancellation of reading or writing a file.</summary>
/// <param name="progress">Receives the completed share, 0 to 1, each time it has grown by a hundredth; null for none.</param>
/// <param name="cancellationToken">Cancels the call.</param>
internal sealed class FileTransfer(IProgress<double>? progress, CancellationToken cancellationToken)
{
    private const double Step = 0.01;

    private long _total = 1;
    private long _done;
    private double _reported = -1;

    /// <summary>Sets the number of bytes to read and write.</summary>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    internal void Begin(long total)
    {
        (_total, _done) = (Math.Max(1, total), 0);
        Advance(0);
    }

    /// <summary>Counts bytes that are about to be read or written.</summary>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
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

    /// <summary>Reports completion.</summary>
    internal void End() => Report(1);

    private void Report(double share) => progress?.Report(_reported = share);
}
