namespace Mustafar.Models.Chat.Jinja;

/// <summary><c>{% macro %}</c>.</summary>
internal sealed class MacroDefinition(string name, IReadOnlyList<(string Name, Expression? Default)> parameters, Body body) : Statement
{
    private protected override Flow Run(Scope scope, Output output)
    {
        scope.Set(name, new Macro(name, parameters, body, scope));
        return Flow.Next;
    }
}

/// <summary><c>{% call macro() %}</c>: the macro gets the block as <c>caller()</c>.</summary>
internal sealed class CallBlock(Call call, IReadOnlyList<(string Name, Expression? Default)> parameters, Body body) : Statement
{
    private protected override Flow Run(Scope scope, Output output)
    {
        output.Write(PythonText.Str(scope.Budget, call.Evaluate(scope, new Macro("caller", parameters, body, scope))));
        return Flow.Next;
    }
}

/// <summary>A macro as a value.</summary>
internal sealed class Macro(string name, IReadOnlyList<(string Name, Expression? Default)> parameters, Body body, Scope scope) : ICallable
{
    private const string Caller = "caller";

    /// <inheritdoc/>
    public object? Call(Budget budget, Arguments arguments)
    {
        budget.Step();
        Scope inner = scope.Inner();
        HashSet<string> known = [];
        for (int i = 0; i < parameters.Count; i++)
        {
            (string parameter, Expression? fallback) = parameters[i];
            known.Add(parameter);
            inner.Set(parameter, i < arguments.Positional.Count ? arguments.Positional[i]
                : arguments.Named.TryGetValue(parameter, out object? value) ? value
                : fallback is not null ? fallback.Evaluate(inner)
                : new Undefined($"parameter '{parameter}' was not provided."));
        }

        inner.Set("varargs", new JinjaTuple([.. arguments.Positional.Skip(parameters.Count)]));
        JinjaDict others = new();
        foreach ((string key, object? value) in arguments.Named.Where(argument => !known.Contains(argument.Key)))
        {
            if (key == Caller)
            {
                inner.Set(Caller, value);
            }
            else
            {
                others.Items[key] = value;
            }
        }

        inner.Set("kwargs", others);
        return body.Render(inner);
    }

    /// <inheritdoc/>
    public override string ToString() => name;
}
