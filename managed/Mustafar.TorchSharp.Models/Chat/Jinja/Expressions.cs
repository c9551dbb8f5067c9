using System.Text;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>An expression of a template.</summary>
internal abstract class Expression
{
    /// <summary>Its value.</summary>
    public object? Evaluate(Scope scope)
    {
        scope.Budget.Step();
        return Compute(scope);
    }

    private protected abstract object? Compute(Scope scope);
}

/// <summary>A constant.</summary>
internal sealed class Constant(object? value) : Expression
{
    /// <summary>The value.</summary>
    public object? Value => value;

    private protected override object? Compute(Scope scope) => value;
}

/// <summary>A variable.</summary>
internal sealed class Name(string name) : Expression
{
    /// <summary>Its name.</summary>
    public string Text => name;

    private protected override object? Compute(Scope scope) => scope.Get(name);
}

/// <summary>A literal list or tuple.</summary>
internal sealed class SequenceLiteral(IReadOnlyList<Expression> items, bool isTuple) : Expression
{
    /// <summary>The elements.</summary>
    public IReadOnlyList<Expression> Items => items;

    private protected override object? Compute(Scope scope)
    {
        object?[] values = [.. items.Select(item => item.Evaluate(scope))];
        return isTuple ? new JinjaTuple(values) : new JinjaList(values);
    }
}

/// <summary>A literal dictionary.</summary>
internal sealed class DictLiteral(IReadOnlyList<(Expression Key, Expression Value)> items) : Expression
{
    private protected override object? Compute(Scope scope)
    {
        JinjaDict dict = new();
        foreach ((Expression key, Expression value) in items)
        {
            dict.Items[JinjaDict.Key(key.Evaluate(scope))] = value.Evaluate(scope);
        }

        return dict;
    }
}

/// <summary><c>a if b else c</c>.</summary>
internal sealed class Conditional(Expression test, Expression then, Expression? otherwise) : Expression
{
    private protected override object? Compute(Scope scope) => Operators.IsTrue(test.Evaluate(scope)) ? then.Evaluate(scope)
        : otherwise is not null ? otherwise.Evaluate(scope)
        : new Undefined("the inline if has no else, and its condition is false.");
}

/// <summary><c>and</c>, <c>or</c>.</summary>
internal sealed class Logical(bool isAnd, Expression left, Expression right) : Expression
{
    private protected override object? Compute(Scope scope)
    {
        object? first = left.Evaluate(scope);
        return Operators.IsTrue(first) == isAnd ? right.Evaluate(scope) : first;
    }
}

/// <summary><c>not</c>, <c>+</c> or <c>-</c> before a value.</summary>
internal sealed class Unary(string op, Expression operand) : Expression
{
    private protected override object? Compute(Scope scope)
    {
        object? value = operand.Evaluate(scope);
        if (op == "not")
        {
            return !Operators.IsTrue(value);
        }

        Operators.ThrowIfUndefined(value);
        return Numbers.TryCompute(op, 0L, value, out object? result) ? (value is double number && op == "-" ? -number : result)
            : throw new JinjaException($"bad operand type for unary {op}: '{PythonText.TypeName(value)}'.");
    }
}

/// <summary>A binary operator.</summary>
internal sealed class Binary(string op, Expression left, Expression right) : Expression
{
    private protected override object? Compute(Scope scope)
    {
        object? a = left.Evaluate(scope);
        object? b = right.Evaluate(scope);
        return Operators.Compute(scope.Budget, op, a, b);
    }
}

/// <summary>Values joined as text: <c>a ~ b ~ c</c>.</summary>
internal sealed class Concatenation(IReadOnlyList<Expression> parts) : Expression
{
    private protected override object? Compute(Scope scope)
    {
        StringBuilder text = new();
        foreach (Expression part in parts)
        {
            string next = PythonText.Str(scope.Budget, part.Evaluate(scope));
            scope.Budget.SpendLength(next.Length);
            Budget.CheckLength((long)text.Length + next.Length);
            text.Append(next);
        }

        return text.ToString();
    }
}

/// <summary>Chained comparisons: <c>a &lt; b &lt; c</c>.</summary>
internal sealed class Comparison(Expression first, IReadOnlyList<(string Operator, Expression Operand)> rest) : Expression
{
    private protected override object? Compute(Scope scope)
    {
        object? left = first.Evaluate(scope);
        foreach ((string op, Expression operand) in rest)
        {
            object? right = operand.Evaluate(scope);
            if (!Operators.Compare(scope.Budget, op, left, right))
            {
                return false;
            }

            left = right;
        }

        return true;
    }
}

/// <summary><c>a.b</c>.</summary>
internal sealed class Attribute(Expression target, string name) : Expression
{
    private protected override object? Compute(Scope scope) => Access.Attribute(target.Evaluate(scope), name);
}

/// <summary><c>a[b]</c>.</summary>
internal sealed class Subscript(Expression target, Expression key) : Expression
{
    private protected override object? Compute(Scope scope) => Access.Item(target.Evaluate(scope), key.Evaluate(scope));
}

/// <summary><c>a[from:to:step]</c>.</summary>
internal sealed class Slice(Expression target, Expression? from, Expression? to, Expression? step) : Expression
{
    private protected override object? Compute(Scope scope)
    {
        object? value = target.Evaluate(scope);
        scope.Budget.SpendValue(value);
        return Access.Slice(value, from?.Evaluate(scope), to?.Evaluate(scope), step?.Evaluate(scope));
    }
}

/// <summary>Arguments as a template writes them.</summary>
internal sealed record ArgumentList(
    IReadOnlyList<(Expression Value, bool IsExpanded)> Positional, IReadOnlyList<(string? Name, Expression Value)> Named)
{
    /// <summary>No arguments.</summary>
    public static ArgumentList None { get; } = new([], []);

    /// <summary>The arguments' values.</summary>
    public Arguments Evaluate(Scope scope)
    {
        List<object?> positional = [];
        foreach ((Expression value, bool isExpanded) in Positional)
        {
            object? argument = value.Evaluate(scope);
            positional.AddRange(isExpanded ? Operators.Iterate(argument) : [argument]);
        }

        Dictionary<string, object?> named = [];
        foreach ((string? name, Expression value) in Named)
        {
            object? argument = value.Evaluate(scope);
            if (name is not null)
            {
                named[name] = argument;
                continue;
            }

            JinjaDict dict = argument as JinjaDict ?? throw new JinjaException("expected a dictionary after **.");
            foreach ((object key, object? item) in dict.Items)
            {
                named[key as string ?? throw new JinjaException("keywords must be strings.")] = item;
            }
        }

        return new Arguments(positional, named);
    }
}

/// <summary><c>f(a, b=c)</c>.</summary>
internal sealed class Call(Expression callee, ArgumentList arguments) : Expression
{
    /// <summary>Calls with a block as <c>caller</c>.</summary>
    public object? Evaluate(Scope scope, Macro caller)
    {
        Arguments values = arguments.Evaluate(scope);
        return Run(scope, new Arguments(values.Positional, new Dictionary<string, object?>(values.Named) { ["caller"] = caller }));
    }

    private protected override object? Compute(Scope scope) => Run(scope, arguments.Evaluate(scope));

    private object? Run(Scope scope, Arguments values)
    {
        object? target = callee.Evaluate(scope);
        Operators.ThrowIfUndefined(target);
        ICallable callable = target as ICallable ?? throw new JinjaException($"'{PythonText.TypeName(target)}' object is not callable.");
        return callable.Call(scope.Budget, values);
    }
}

/// <summary><c>value | name(arguments)</c>.</summary>
/// <param name="value">The filtered value; the text of a block if null.</param>
/// <param name="name">The filter's name.</param>
/// <param name="arguments">Its arguments.</param>
internal sealed class Filter(Expression? value, string name, ArgumentList arguments) : Expression
{
    /// <summary>Applies the filter, and those before it, to a block's text.</summary>
    public object? Apply(Scope scope, string text) =>
        Run(scope, value is Filter inner ? inner.Apply(scope, text) : text);

    private protected override object? Compute(Scope scope) => Run(scope, value!.Evaluate(scope));

    private object? Run(Scope scope, object? input) => Filters.Find(name).Invoke(scope.Budget, input, arguments.Evaluate(scope));
}

/// <summary><c>value is name(arguments)</c>.</summary>
internal sealed class Test(Expression value, string name, ArgumentList arguments) : Expression
{
    private protected override object? Compute(Scope scope) =>
        Operators.IsTrue(Tests.Find(name).Invoke(scope.Budget, value.Evaluate(scope), arguments.Evaluate(scope)));
}
