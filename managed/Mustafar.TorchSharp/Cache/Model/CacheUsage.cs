namespace Mustafar;

/// <summary>What of a <see cref="ModelKeyValueCache"/> is in use and what is free.</summary>
/// <param name="Sequences">Sequences in the cache.</param>
/// <param name="UsedBytes">What they occupy: their pages, those that several share counted once, and their recent windows.</param>
/// <param name="ReservedBytes">What is allocated on the device.</param>
/// <param name="FreeBytes">Pages that a budget has left; null without a budget.</param>
/// <param name="FreeTokens">Compressed tokens that fit into them; null without a budget.</param>
public readonly record struct CacheUsage(int Sequences, long UsedBytes, long ReservedBytes, long? FreeBytes, long? FreeTokens);
