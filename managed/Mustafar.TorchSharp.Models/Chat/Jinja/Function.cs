namespace Mustafar.Models.Chat.Jinja;

/// <summary>Arguments of a built-in function, in order of its parameters.</summary>
/// <param name="Budget">Bounds its work.</param>
/// <param name="Self">The value that is filtered or tested, or whose method it is.</param>
/// <param name="Values">For each parameter the argument, or null if there is none; see <see cref="Has"/>.</param>
/// <param name="Given">Which parameters have an argument.</param>
/// <param name="All">All arguments, for functions that take any.</param>
internal readonly record struct Invocation(Budget Budget, object? Self, object?[] Values, bool[] Given, Arguments All)
{
    /// <summary>The value itself as text, as <c>str</c> writes it.</summary>
    public string Text => PythonText.Str(Budget, Self);

    /// <summary>Whether a parameter has an argument that is not None.</summary>
    public bool Has(int i) => Given[i] && Values[i] is not null;

    /// <summary>An argument that is a string.</summary>
    public string String(int i, string fallback = "") => !Has(i) ? fallback : Values[i] switch
    {
        string text => text,
        Undefined undefined => throw undefined.Error(),
        { } other => throw new JinjaException($"expected a string as argument {i + 1}, but got {PythonText.TypeName(other)}."),
        null => fallback,
    };

    /// <summary>An argument that is an integer.</summary>
    public long Integer(int i, long fallback) => !Has(i) ? fallback
        : Numbers.TryInteger(Values[i], out long number) ? number
        : throw new JinjaException($"expected an integer as argument {i + 1}, but got {PythonText.TypeName(Values[i])}.");

    /// <summary>An argument that counts as true or false.</summary>
    public bool Flag(int i, bool fallback = false) => Given[i] ? Operators.IsTrue(Values[i]) : fallback;
}

/// <summary>A built-in filter, test, method or function.</summary>
/// <param name="Name">Its name.</param>
/// <param name="Body">Its implementation.</param>
/// <param name="Parameters">Names of its parameters; null if it takes any arguments.</param>
/// <param name="Required">How many of them are required.</param>
internal sealed record Function(string Name, Func<Invocation, object?> Body, string[]? Parameters, int Required = 0)
{
    /// <summary>Calls it.</summary>
    /// <exception cref="JinjaException">Arguments are missing, too many, unknown or of another type.</exception>
    public object? Invoke(Budget budget, object? self, Arguments arguments)
    {
        budget.SpendValue(self);
        int count = Parameters?.Length ?? 0;
        object?[] values = new object?[count];
        bool[] given = new bool[count];
        if (Parameters is not null)
        {
            if (arguments.Positional.Count > count)
            {
                throw new JinjaException($"{Name} takes {count} arguments, but got {arguments.Positional.Count}.");
            }

            for (int i = 0; i < arguments.Positional.Count; i++)
            {
                (values[i], given[i]) = (arguments.Positional[i], true);
            }

            foreach ((string name, object? value) in arguments.Named)
            {
                int at = Array.IndexOf(Parameters, name);
                if (at < 0 || given[at])
                {
                    throw new JinjaException($"{Name} has no argument '{name}', or has it twice.");
                }

                (values[at], given[at]) = (value, true);
            }

            int missing = Array.IndexOf(given, false);
            if (missing >= 0 && missing < Required)
            {
                throw new JinjaException($"{Name} needs an argument '{Parameters[missing]}'.");
            }
        }

        object? result = Body(new Invocation(budget, self, values, given, arguments));
        budget.SpendValue(result);
        return result;
    }
}

/// <summary>A method of a value, or a global function, which has none.</summary>
internal sealed class BoundMethod(Function function, object? self) : ICallable
{
    /// <inheritdoc/>
    public object? Call(Budget budget, Arguments arguments) => function.Invoke(budget, self, arguments);
}

/// <summary>Functions by name.</summary>
internal sealed class FunctionTable : Dictionary<string, Function>
{
    /// <summary>Adds one; several names separated by spaces are aliases.</summary>
    public void Add(string names, Func<Invocation, object?> body, string[]? parameters = null, int required = 0)
    {
        foreach (string name in names.Split(' '))
        {
            Add(name, new Function(name, body, parameters, required));
        }
    }

    /// <summary>Adds one that takes no arguments.</summary>
    public void AddPlain(string names, Func<Invocation, object?> body) => Add(names, body, []);
}
