namespace Mustafar.Benchmarks.Decode;

/// <summary>Tables of whole decode steps: each row is compared with the dense cache at the same batch size, and the largest batches with
/// the largest dense one.</summary>
internal sealed class DecodeReport
{
    private readonly Report _steps = new(
        "decode", "context", "batch", "cache", "ms", "tokens/s", "dense ms / ms", "attention ms", "sampling ms", "rest ms", "host ms", "first token ms",
        $"{StepMeasurement.ManyTokens} tokens ms", $"{StepMeasurement.ManyTokens} tokens / 1", "cache MiB", "peak MiB", "graph");

    private readonly Report _largest = new("decode-largest", "context", "cache", "sequences", "tokens/s", "sequences / dense", "tokens/s / dense");
    private readonly Dictionary<(int Batch, int Context), DecodeFigures> _dense = [];
    private readonly Dictionary<int, (int Batch, double Rate)> _largestDense = []; // by context

    /// <summary>Adds a measurement; null if it didn't fit. For each batch and context, the dense cache comes first.</summary>
    internal void Add(CacheForm form, int batch, int context, DecodeFigures? figures)
    {
        if (figures is null)
        {
            _steps.Add(context, batch, form.Name, "does not fit", "", "", "", "", "", "", "", "", "", "", "", "");
            Console.WriteLine($"{context} x {batch} {form.Name}: does not fit");
            return;
        }

        if (form.Options is null)
        {
            _dense[(batch, context)] = figures;
        }

        double? ratio = _dense.TryGetValue((batch, context), out DecodeFigures? opponent) ? opponent.Step / figures.Step : null;
        double rest = figures.Step - figures.Attention - figures.Sampling;
        double? many = figures.ManyTokens / figures.Step;
        _steps.Add(
            context, batch, form.Name, figures.Step, figures.Rate(batch), Cell(ratio), figures.Attention, figures.Sampling, rest,
            figures.Host, Cell(figures.FirstToken), Cell(figures.ManyTokens), Cell(many), MiB(figures.CacheBytes), MiB(figures.PeakBytes), figures.Graph);
        Console.WriteLine(
            $"{context} x {batch} {form.Name}: {figures.Step:F3} ms, attention {figures.Attention:F3}, sampling {figures.Sampling:F3}, " +
            $"host {figures.Host:F3}, ratio {ratio:F2}, peak {MiB(figures.PeakBytes):F0} MiB" +
            (batch > 1 ? "" : $", first token after {figures.FirstToken:F0} ms, {StepMeasurement.ManyTokens} tokens in {many:F2} times a step"));
        if (form.Options is not null && ratio is double bar)
        {
            _steps.AddBar($"{form.Name}, {batch} x {context}", bar);
        }
    }

    /// <summary>Adds the largest number of sequences that fits; the dense cache's comes first.</summary>
    internal void AddLargest(CacheForm form, int batch, int context, DecodeFigures figures)
    {
        double rate = figures.Rate(batch);
        if (form.Options is null)
        {
            _largestDense[context] = (batch, rate);
        }

        // If not even one sequence fits with a dense cache, there is nothing to compare with.
        (double? sequences, double? rates) = _largestDense.TryGetValue(context, out (int Batch, double Rate) dense)
            ? (batch / (double)dense.Batch, rate / dense.Rate)
            : ((double?)null, (double?)null);
        _largest.Add(context, form.Name, batch, rate, Cell(sequences), Cell(rates));
        Console.WriteLine(
            $"{context} {form.Name}: at most {batch} sequences, {sequences:F2} times dense; {rate:F0} tokens/s, {rates:F2} times dense");
    }

    /// <summary>Prints the tables. If a folder is given, also writes them and the chart into it.</summary>
    internal void Write(DirectoryInfo? folder, string where)
    {
        _steps.Write(folder, $"Decode steps: the dense cache's time over the compressed one's, {where}");
        if (_largestDense.Count > 0)
        {
            _largest.Write(folder);
        }
    }

    private static object Cell(double? number) => number is double value ? value : "";

    private static double MiB(long bytes) => bytes / 1048576.0;
}
