namespace Mustafar.Models.Chat.Jinja;

/// <summary>A chat template, rendered as in transformers.</summary>
/// <remarks>
/// <para>
/// An interpreter of the part of Jinja 3 that chat templates use: all statements except those that read other templates, all operators,
/// the filters, tests and methods of <see cref="Filters"/>, <see cref="Tests"/>, <see cref="StringMethods"/> and
/// <see cref="ContainerMethods"/>, and the functions below. Anything else is an error, never skipped. As in transformers
/// (an <c>ImmutableSandboxedEnvironment</c> with <c>trim_blocks</c> and <c>lstrip_blocks</c>), templates cannot change their inputs.
/// </para>
/// <para>
/// It is part of this project because .NET has no Jinja engine: NuGet has none, and @huggingface/jinja would need a JavaScript engine,
/// which loads slowly and is harder to bound. The tests compare it with the output of Python's jinja2.
/// </para>
/// </remarks>
internal sealed class JinjaTemplate
{
    private const long MaxRange = 100_000;

    private static readonly FunctionTable s_globals = new()
    {
        { "range", call => Range(call), null },
        { "namespace", Namespace, null },
        { "dict", call => DictOf(call), null },
        { "raise_exception", call => throw new TemplateRaisedException(PythonText.Str(call.Budget, call.Values[0])), ["message"], 1 },
    };

    private readonly Body _body;

    private JinjaTemplate(Body body) => _body = body;

    /// <summary>Reads a template.</summary>
    /// <exception cref="JinjaException">It is not valid, or uses a statement that is not supported.</exception>
    public static JinjaTemplate Parse(string source) => new(Parser.Parse(source));

    /// <summary>Renders the template.</summary>
    /// <param name="variables">Its variables: values as <see cref="JinjaValue"/> makes them.</param>
    /// <param name="now">The time for <c>strftime_now</c>.</param>
    /// <param name="cancellationToken">Cancels the rendering.</param>
    /// <exception cref="TemplateRaisedException">The template refuses its variables.</exception>
    /// <exception cref="JinjaException">It can't be rendered.</exception>
    public string Render(IReadOnlyDictionary<string, object?> variables, DateTime now, CancellationToken cancellationToken = default)
    {
        Budget budget = new(cancellationToken);
        Dictionary<string, object?> globals = s_globals.ToDictionary(pair => pair.Key, pair => (object?)new BoundMethod(pair.Value, null));
        globals["strftime_now"] = new BoundMethod(
            new Function("strftime_now", call => Strftime.Format(now, call.String(0)), ["format"], 1), null);
        foreach ((string name, object? value) in variables)
        {
            globals[name] = value;
        }

        return _body.Render(new Scope(budget, globals).Inner());
    }

    private static JinjaList Range(Invocation call)
    {
        long[] bounds = [.. call.All.Positional.Select(value => Numbers.TryInteger(value, out long number)
            ? number : throw new JinjaException($"range takes integers, but got {PythonText.TypeName(value)}."))];
        (long start, long end, long step) = bounds switch
        {
            [long stop] => (0, stop, 1L),
            [long first, long stop] => (first, stop, 1L),
            [long first, long stop, long by] when by != 0 => (first, stop, by),
            _ => throw new JinjaException("range takes one to three integers, the last not 0."),
        };
        Int128 count = step > 0 ? ((Int128)end - start + step - 1) / step : ((Int128)start - end - step - 1) / -step;
        if (count > MaxRange)
        {
            throw new JinjaException($"range has more than {MaxRange} elements.");
        }

        return new JinjaList([.. Enumerable.Range(0, (int)Int128.Max(count, 0)).Select(i => (object?)(start + (i * step)))]);
    }

    private static JinjaNamespace Namespace(Invocation call)
    {
        JinjaNamespace result = new();
        foreach ((object key, object? value) in DictOf(call).Items)
        {
            result.Values[(string)key] = value;
        }

        return result;
    }

    private static JinjaDict DictOf(Invocation call)
    {
        JinjaDict result = new();
        foreach (object? source in call.All.Positional)
        {
            JinjaDict dict = source as JinjaDict ?? throw new JinjaException($"expected a dictionary, but got {PythonText.TypeName(source)}.");
            foreach ((object key, object? value) in dict.Items)
            {
                result.Items[key] = value;
            }
        }

        foreach ((string key, object? value) in call.All.Named)
        {
            result.Items[key] = value;
        }

        return result;
    }
}
