using System.Globalization;

namespace Mustafar;

/// <summary>Used and free memory of a <see cref="ModelKeyValueCache"/>.</summary>
/// <param name="Sequences">Sequences in the cache.</param>
/// <param name="UsedBytes">What they take: their pages, counting shared ones once, dense tokens, sinks and channel scales.</param>
/// <param name="ReservedBytes">What is allocated on the device.</param>
/// <param name="FreeBytes">Pages that a budget has left; null without a budget.</param>
/// <param name="FreeTokens">Compressed tokens that fit into them; null without a budget.</param>
public readonly record struct CacheUsage(int Sequences, long UsedBytes, long ReservedBytes, long? FreeBytes, long? FreeTokens)
{
    /// <summary>The numbers as English text, whatever the culture: "2 sequences, 1,048,576 of 4,194,304 bytes in use, room for 8,192
    /// more tokens".</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture,
        $"{Sequences:N0} {(Sequences == 1 ? "sequence" : "sequences")}, {UsedBytes:N0} of {ReservedBytes:N0} bytes in use{(FreeTokens is long tokens ? string.Create(CultureInfo.InvariantCulture, $", room for {tokens:N0} more tokens") : "")}");
}
