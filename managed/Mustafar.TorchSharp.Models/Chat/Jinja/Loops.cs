namespace Mustafar.Models.Chat.Jinja;

/// <summary><c>{% for %}</c>.</summary>
internal sealed class For(Expression target, Expression items, Expression? test, bool isRecursive, Body body, Body? otherwise) : Statement
{
    /// <summary>Renders the loop over a value.</summary>
    /// <param name="scope">The scope around it.</param>
    /// <param name="value">The value.</param>
    /// <param name="depth">Depth of recursion, from 0.</param>
    /// <param name="output">Receives the output.</param>
    public void Iterate(Scope scope, object? value, int depth, Output output)
    {
        scope.Budget.SpendValue(value);
        List<object?> elements = [];
        foreach (object? element in Operators.Iterate(value))
        {
            scope.Budget.Spend(1);
            if (test is not null)
            {
                Scope filtered = scope.Inner();
                Set.Assign(filtered, target, element);
                if (!Operators.IsTrue(test.Evaluate(filtered)))
                {
                    continue;
                }
            }

            elements.Add(element);
        }

        LoopVariable loop = new(elements, depth, isRecursive ? again => Again(scope, again, depth + 1) : null);
        for (int i = 0; i < elements.Count; i++)
        {
            loop.At = i;
            Scope inner = scope.Inner();
            inner.Set("loop", loop);
            Set.Assign(inner, target, elements[i]);
            if (body.Execute(inner, output) == Flow.Break)
            {
                break;
            }
        }

        if (elements.Count == 0)
        {
            otherwise?.Execute(scope.Inner(), output);
        }
    }

    private protected override Flow Run(Scope scope, Output output)
    {
        Iterate(scope, items.Evaluate(scope), 0, output);
        return Flow.Next;
    }

    private string Again(Scope scope, object? value, int depth)
    {
        Output output = new(scope.Budget);
        Iterate(scope, value, depth, output);
        return output.ToString();
    }
}

/// <summary>The variable <c>loop</c>.</summary>
internal sealed class LoopVariable(List<object?> elements, int depth, Func<object?, string>? recurse) : IHasAttributes, ICallable
{
    private object?[]? _watched;

    /// <summary>Index of the element, from 0.</summary>
    public int At { get; set; }

    /// <inheritdoc/>
    public bool TryGet(string name, out object? value)
    {
        value = name switch
        {
            "index" => At + 1L,
            "index0" => (long)At,
            "revindex" => (long)elements.Count - At,
            "revindex0" => elements.Count - At - 1L,
            "first" => At == 0,
            "last" => At == elements.Count - 1,
            "length" => (long)elements.Count,
            "depth" => depth + 1L,
            "depth0" => (long)depth,
            "previtem" => At > 0 ? elements[At - 1] : new Undefined("there is no previous item."),
            "nextitem" => At + 1 < elements.Count ? elements[At + 1] : new Undefined("there is no next item."),
            "cycle" => new BoundMethod(new Function(name, call => call.All.Positional.Count > 0
                ? call.All.Positional[At % call.All.Positional.Count]
                : throw new JinjaException("no items for cycling given."), null), this),
            "changed" => new BoundMethod(new Function(name, HasChanged, null), this),
            _ => this,
        };
        return !ReferenceEquals(value, this);
    }

    /// <inheritdoc/>
    public object? Call(Budget budget, Arguments arguments) => recurse is not null && arguments.Positional.Count == 1
        ? recurse(arguments.Positional[0])
        : throw new JinjaException("'loop' can be called with one value, in a loop marked 'recursive'.");

    private object? HasChanged(Invocation call)
    {
        object?[] values = [.. call.All.Positional];
        bool same = _watched is not null && Operators.AreEqual(call.Budget, new JinjaTuple(_watched), new JinjaTuple(values));
        _watched = values;
        return !same;
    }
}
