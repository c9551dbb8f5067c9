namespace Mustafar.Models.Chat.Jinja;

/// <summary>Where a rendering goes on behind a statement.</summary>
internal enum Flow
{
    /// <summary>At the next statement.</summary>
    Next,

    /// <summary>Behind the loop.</summary>
    Break,

    /// <summary>At the loop's next element.</summary>
    Continue,
}

/// <summary>A statement of a template.</summary>
internal abstract class Statement
{
    /// <summary>Its line, from 1.</summary>
    public int Line { get; init; }

    /// <summary>Renders it.</summary>
    /// <exception cref="JinjaException">It can't be rendered; the error has the line.</exception>
    public Flow Execute(Scope scope, Output output)
    {
        try
        {
            scope.Budget.Step();
            return Run(scope, output);
        }
        catch (JinjaException exception) when (exception.Line == 0)
        {
            exception.Line = Line;
            throw;
        }
    }

    private protected abstract Flow Run(Scope scope, Output output);
}

/// <summary>Statements one after another, in the scope around them.</summary>
internal sealed class Body(IReadOnlyList<Statement> statements) : Statement
{
    /// <summary>Renders them to a text.</summary>
    public string Render(Scope scope)
    {
        Output output = new(scope.Budget);
        Execute(scope, output);
        return output.ToString();
    }

    private protected override Flow Run(Scope scope, Output output)
    {
        foreach (Statement statement in statements)
        {
            Flow flow = statement.Execute(scope, output);
            if (flow != Flow.Next)
            {
                return flow;
            }
        }

        return Flow.Next;
    }
}

/// <summary>Statements in a scope of their own.</summary>
internal sealed class Block(Body body) : Statement
{
    private protected override Flow Run(Scope scope, Output output) => body.Execute(scope.Inner(), output);
}

/// <summary>Text outside of tags.</summary>
internal sealed class Text(string text) : Statement
{
    private protected override Flow Run(Scope scope, Output output)
    {
        output.Write(text);
        return Flow.Next;
    }
}

/// <summary><c>{{ value }}</c>.</summary>
internal sealed class Print(Expression value) : Statement
{
    private protected override Flow Run(Scope scope, Output output)
    {
        output.Write(PythonText.Str(scope.Budget, value.Evaluate(scope)));
        return Flow.Next;
    }
}

/// <summary><c>{% if %}</c>, with its <c>elif</c> and <c>else</c>.</summary>
internal sealed class If(IReadOnlyList<(Expression Test, Body Body)> branches, Body? otherwise) : Statement
{
    private protected override Flow Run(Scope scope, Output output)
    {
        foreach ((Expression test, Body body) in branches)
        {
            if (Operators.IsTrue(test.Evaluate(scope)))
            {
                return body.Execute(scope, output);
            }
        }

        return otherwise?.Execute(scope, output) ?? Flow.Next;
    }
}

/// <summary><c>{% break %}</c> and <c>{% continue %}</c>.</summary>
internal sealed class Jump(Flow flow) : Statement
{
    private protected override Flow Run(Scope scope, Output output) => flow;
}

/// <summary>An attribute of a namespace, on the left of <c>=</c>.</summary>
internal sealed class NamespaceAttribute(string name, string attribute) : Expression
{
    /// <summary>Sets it.</summary>
    public void Assign(Scope scope, object? value)
    {
        JinjaNamespace target = scope.Get(name) as JinjaNamespace
            ?? throw new JinjaException($"cannot assign attribute '{attribute}' on '{name}', which is not a namespace.");
        target.Values[attribute] = value;
    }

    private protected override object? Compute(Scope scope) => throw new NotSupportedException();
}

/// <summary><c>{% set target = value %}</c>.</summary>
internal sealed class Set(Expression target, Expression value) : Statement
{
    /// <summary>Assigns to a name, a namespace's attribute, or a tuple of both.</summary>
    public static void Assign(Scope scope, Expression target, object? value)
    {
        switch (target)
        {
            case Name name:
                scope.Set(name.Text, value);
                break;
            case NamespaceAttribute attribute:
                attribute.Assign(scope, value);
                break;
            case SequenceLiteral targets:
                Operators.ThrowIfUndefined(value);
                object?[] values = [.. Operators.Iterate(value)];
                if (values.Length != targets.Items.Count)
                {
                    throw new JinjaException($"expected {targets.Items.Count} values to unpack, but got {values.Length}.");
                }

                for (int i = 0; i < values.Length; i++)
                {
                    Assign(scope, targets.Items[i], values[i]);
                }

                break;
        }
    }

    private protected override Flow Run(Scope scope, Output output)
    {
        Assign(scope, target, value.Evaluate(scope));
        return Flow.Next;
    }
}

/// <summary><c>{% set target %}…{% endset %}</c> and <c>{% filter %}</c>: a block's text, filtered.</summary>
/// <param name="target">Where the text goes; to the output if null.</param>
/// <param name="filter">What is applied to it; nothing if null.</param>
/// <param name="body">The block.</param>
internal sealed class SetBlock(Expression? target, Filter? filter, Body body) : Statement
{
    private protected override Flow Run(Scope scope, Output output)
    {
        Scope inner = scope.Inner();
        string text = body.Render(inner);
        object? value = filter is null ? text : filter.Apply(inner, text);
        if (target is null)
        {
            output.Write(PythonText.Str(scope.Budget, value));
        }
        else
        {
            Set.Assign(scope, target, value);
        }

        return Flow.Next;
    }
}
