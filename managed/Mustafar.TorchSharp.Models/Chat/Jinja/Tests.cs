namespace Mustafar.Models.Chat.Jinja;

/// <summary>The tests of Jinja: what stands behind <c>is</c>.</summary>
internal static class Tests
{
    private static readonly string[] s_other = ["other"];

    private static readonly FunctionTable s_all = new()
    {
        { "eq equalto ==", call => Operators.Compare(call.Budget, "==", call.Self, call.Values[0]), s_other, 1 },
        { "ne !=", call => Operators.Compare(call.Budget, "!=", call.Self, call.Values[0]), s_other, 1 },
        { "lt lessthan <", call => Operators.Compare(call.Budget, "<", call.Self, call.Values[0]), s_other, 1 },
        { "le <=", call => Operators.Compare(call.Budget, "<=", call.Self, call.Values[0]), s_other, 1 },
        { "gt greaterthan >", call => Operators.Compare(call.Budget, ">", call.Self, call.Values[0]), s_other, 1 },
        { "ge >=", call => Operators.Compare(call.Budget, ">=", call.Self, call.Values[0]), s_other, 1 },
        { "in", call => Operators.Contains(call.Budget, call.Values[0], call.Self), ["seq"], 1 },
        { "sameas", call => ReferenceEquals(call.Self, call.Values[0]) || (call.Self?.GetType() == call.Values[0]?.GetType() && call.Self is bool or long or string && call.Self.Equals(call.Values[0])), s_other, 1 },
        { "divisibleby", call => Equals(Operators.Compute(call.Budget, "%", call.Self, call.Values[0]), 0L), ["num"], 1 },
    };

    static Tests()
    {
        s_all.AddPlain("defined", call => call.Self is not Undefined);
        s_all.AddPlain("undefined", call => call.Self is Undefined);
        s_all.AddPlain("none", call => call.Self is null);
        s_all.AddPlain("boolean", call => call.Self is bool);
        s_all.AddPlain("true", call => call.Self is true);
        s_all.AddPlain("false", call => call.Self is false);
        s_all.AddPlain("integer", call => call.Self is long);
        s_all.AddPlain("float", call => call.Self is double);
        s_all.AddPlain("number", call => call.Self is long or double or bool);
        s_all.AddPlain("string", call => call.Self is string);
        s_all.AddPlain("mapping", call => call.Self is JinjaDict);
        s_all.AddPlain("sequence", call => call.Self is string or JinjaSequence or JinjaDict or Undefined);
        s_all.AddPlain("iterable", call => call.Self is string or JinjaSequence or JinjaDict or JinjaGenerator or Undefined);
        s_all.AddPlain("callable", call => call.Self is ICallable);
        s_all.AddPlain("lower", call => IsCased(call.Text, char.IsLower, char.IsUpper));
        s_all.AddPlain("upper", call => IsCased(call.Text, char.IsUpper, char.IsLower));
        s_all.AddPlain("even", call => Equals(Operators.Compute(call.Budget, "%", call.Self, 2L), 0L));
        s_all.AddPlain("odd", call => Equals(Operators.Compute(call.Budget, "%", call.Self, 2L), 1L));
    }

    /// <summary>A test.</summary>
    /// <exception cref="JinjaException">There is none of this name here.</exception>
    public static Function Find(string name) => s_all.TryGetValue(name, out Function? test)
        ? test
        : throw new JinjaException($"the test '{name}' is not supported.");

    /// <summary>Whether a text has characters of one case and none of the other.</summary>
    public static bool IsCased(string text, Func<char, bool> wanted, Func<char, bool> other) => text.Any(wanted) && !text.Any(other);
}
