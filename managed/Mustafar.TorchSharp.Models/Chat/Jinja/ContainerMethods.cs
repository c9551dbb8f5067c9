namespace Mustafar.Models.Chat.Jinja;

/// <summary>Methods of dictionaries, lists and tuples that change nothing.</summary>
internal static class ContainerMethods
{
    private static readonly string[] s_value = ["value"];

    private static readonly FunctionTable s_dict = new()
    {
        { "get", call => Dict(call).Items.TryGetValue(JinjaDict.Key(call.Values[0]), out object? value) ? value : call.Values[1], ["key", "default"], 1 },
    };

    private static readonly FunctionTable s_sequence = new()
    {
        { "index", Index, s_value, 1 },
        { "count", call => (long)Sequence(call).Items.Count(item => Operators.AreEqual(call.Budget, item, call.Values[0])), s_value, 1 },
    };

    static ContainerMethods()
    {
        s_dict.AddPlain("items", call => Items(Dict(call)));
        s_dict.AddPlain("keys", call => new JinjaList([.. Operators.Iterate(call.Self)]));
        s_dict.AddPlain("values", call => new JinjaList([.. Dict(call).Items.Values]));
        s_dict.AddPlain("copy", call => call.Self);
        s_sequence.AddPlain("copy", call => call.Self);
    }

    /// <summary>A method of dictionaries, or null.</summary>
    public static Function? OfDict(string name) => s_dict.GetValueOrDefault(name);

    /// <summary>A method of lists and tuples, or null.</summary>
    public static Function? OfSequence(string name) => s_sequence.GetValueOrDefault(name);

    /// <summary>Keys and their values, as tuples.</summary>
    public static JinjaList Items(JinjaDict dict) =>
        new([.. dict.Items.Select(pair => new JinjaTuple([JinjaDict.FromKey(pair.Key), pair.Value]))]);

    private static JinjaDict Dict(Invocation call) => (JinjaDict)call.Self!;

    private static JinjaSequence Sequence(Invocation call) => (JinjaSequence)call.Self!;

    private static object Index(Invocation call)
    {
        for (int i = 0; i < Sequence(call).Items.Count; i++)
        {
            if (Operators.AreEqual(call.Budget, Sequence(call).Items[i], call.Values[0]))
            {
                return (long)i;
            }
        }

        throw new JinjaException("the value is not in the list.");
    }
}
