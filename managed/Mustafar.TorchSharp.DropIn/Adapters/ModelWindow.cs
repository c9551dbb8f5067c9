using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>The sliding window of a model's configuration.</summary>
internal static class ModelWindow
{
    /// <summary>Options with the window that a model's modules have, if they have one.</summary>
    /// <exception cref="ArgumentException">The options have another window.</exception>
    /// <exception cref="NotSupportedException">The modules have several.</exception>
    internal static MustafarOptions Taken(
        MustafarOptions options, IEnumerable<nn.Module> modules, IReadOnlyList<AttentionAdapter> adapters)
    {
        int[] windows =
            [.. modules.SelectMany(module => adapters.Select(adapter => adapter.SlidingWindowOf(module))).OfType<int>().Distinct()];
        return windows switch
        {
            [] => options,
            [int window] when options.SlidingWindow is null || options.SlidingWindow == window => options with { SlidingWindow = window },
            [int window] => throw new ArgumentException(
                $"Expected {nameof(MustafarOptions.SlidingWindow)} to be {window}, the number of tokens that each token sees in the model, or null to " +
                $"take it from the model, but got {options.SlidingWindow}.",
                nameof(options)),
            _ => throw new NotSupportedException(
                $"The model's layers have different sliding windows ({string.Join(", ", windows)} tokens); a compressed cache has only one."),
        };
    }
}
