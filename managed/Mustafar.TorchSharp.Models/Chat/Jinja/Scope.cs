using System.Text;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Variables of a part of a template, and of the parts around it.</summary>
internal sealed class Scope
{
    // Memory for it and its variables.
    private const int UnitsOfScope = 10;

    private readonly Scope? _outer;
    private Dictionary<string, object?>? _values;

    /// <summary>Makes the outermost scope.</summary>
    public Scope(Budget budget, Dictionary<string, object?> values)
    {
        Budget = budget;
        _values = values;
    }

    private Scope(Scope outer)
    {
        Budget = outer.Budget;
        _outer = outer;
    }

    /// <summary>Bounds the rendering's work.</summary>
    public Budget Budget { get; }

    /// <summary>A scope within this one.</summary>
    /// <exception cref="JinjaException">The rendering took too long.</exception>
    public Scope Inner()
    {
        Budget.Spend(UnitsOfScope);
        return new(this);
    }

    /// <summary>The value of a name.</summary>
    public object? Get(string name)
    {
        for (Scope? scope = this; scope is not null; scope = scope._outer)
        {
            if (scope._values is not null && scope._values.TryGetValue(name, out object? value))
            {
                return value;
            }
        }

        return new Undefined($"'{name}' is undefined.");
    }

    /// <summary>Sets a name in this scope.</summary>
    public void Set(string name, object? value) => (_values ??= [])[name] = value;
}

/// <summary>Text that a rendering writes.</summary>
internal sealed class Output(Budget budget)
{
    private readonly StringBuilder _text = new();

    /// <summary>Appends text.</summary>
    /// <exception cref="JinjaException">It is too long.</exception>
    public void Write(string text)
    {
        budget.SpendLength(text.Length);
        if ((long)_text.Length + text.Length > 1 << 26)
        {
            throw new JinjaException("the text is longer than a chat template is allowed to write.");
        }

        _text.Append(text);
    }

    /// <inheritdoc/>
    public override string ToString() => _text.ToString();
}
