namespace Mustafar;

/// <summary>Limits of a <see cref="ModelKeyValueCache"/>. Anything without a limit grows as needed.</summary>
/// <remarks>
/// With a budget, all pages of compressed tokens are allocated at once and nothing grows: a step that needs more throws a
/// <see cref="CacheBudgetException"/> before anything changes.
/// </remarks>
public sealed record CacheLimits
{
    private readonly int? _maxSequences;
    private readonly int? _maxLength;
    private readonly int? _maxStepTokens;
    private readonly long? _budgetBytes;
    private readonly long? _budgetTokens;

    /// <summary>Maximum number of sequences at a time, for which there is room from the start.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public int? MaxSequences
    {
        get => _maxSequences;
        init => _maxSequences = (int?)Positive(value, nameof(MaxSequences));
    }

    /// <summary>Maximum number of tokens of a sequence, for which its page table has room from the start.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public int? MaxLength
    {
        get => _maxLength;
        init => _maxLength = (int?)Positive(value, nameof(MaxLength));
    }

    /// <summary>Maximum number of new tokens in a step, over all its sequences.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public int? MaxStepTokens
    {
        get => _maxStepTokens;
        init => _maxStepTokens = (int?)Positive(value, nameof(MaxStepTokens));
    }

    /// <summary>Bytes of the whole cache on its device: pages, recent windows, sinks and tables. Needs <see cref="MaxSequences"/>, since
    /// each sequence has a recent window.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public long? BudgetBytes
    {
        get => _budgetBytes;
        init => _budgetBytes = Positive(value, nameof(BudgetBytes));
    }

    /// <summary>Compressed tokens of all sequences together; whole groups of them are allocated. Dense tokens come on top.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is not positive.</exception>
    public long? BudgetTokens
    {
        get => _budgetTokens;
        init => _budgetTokens = Positive(value, nameof(BudgetTokens));
    }

    private static long? Positive(long? value, string name) => value is null or > 0
        ? value
        : throw new ArgumentOutOfRangeException(name, value, "Expected a positive number, or null for no limit.");
}
