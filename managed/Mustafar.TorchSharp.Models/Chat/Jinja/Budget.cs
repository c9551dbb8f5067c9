using System.Runtime.CompilerServices;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Bounds the work of one rendering, so that no template can hang, exhaust memory or overflow the stack.</summary>
internal sealed class Budget(CancellationToken cancellationToken = default)
{
    // In units of about 20 ns. A chat of 1000 messages takes some hundred thousand.
    private const int Units = 20_000_000;
    private const int MaxLength = 1 << 26;
    private const int UnitsBetweenChecks = 1 << 14;

    private int _left = Units;
    private int _nextCheck = Units - UnitsBetweenChecks;

    /// <summary>Pays for a step that may recurse.</summary>
    /// <exception cref="JinjaException">The rendering took too long, or is nested too deeply.</exception>
    public void Step()
    {
        Spend(1);
        if (!RuntimeHelpers.TryEnsureSufficientExecutionStack())
        {
            throw new JinjaException("it is nested too deeply.");
        }
    }

    /// <summary>Pays for work.</summary>
    /// <exception cref="JinjaException">The rendering took too long.</exception>
    /// <exception cref="OperationCanceledException">The call was cancelled.</exception>
    public void Spend(int units)
    {
        _left -= units;
        if (_left < 0)
        {
            throw new JinjaException("it takes more steps than a chat template is allowed.");
        }

        if (_left < _nextCheck)
        {
            _nextCheck = _left - UnitsBetweenChecks;
            cancellationToken.ThrowIfCancellationRequested();
        }
    }

    /// <summary>Pays for a text or list of some length that an operation reads or makes.</summary>
    /// <exception cref="JinjaException">It is too long, or the rendering took too long.</exception>
    public void SpendLength(long length)
    {
        CheckLength(length);
        Spend((int)(length / 32));
    }

    /// <summary>Checks the length of a text or list.</summary>
    /// <exception cref="JinjaException">It is too long.</exception>
    public static void CheckLength(long length)
    {
        if (length > MaxLength)
        {
            throw new JinjaException($"a value of {length} elements is longer than a chat template is allowed to make.");
        }
    }

    /// <summary>Pays for a value that an operation reads or made.</summary>
    public void SpendValue(object? value) => SpendLength(value switch
    {
        string text => text.Length,
        JinjaSequence sequence => sequence.Items.Count * 4L,
        JinjaDict dict => dict.Items.Count * 4L,
        _ => 0,
    });
}
