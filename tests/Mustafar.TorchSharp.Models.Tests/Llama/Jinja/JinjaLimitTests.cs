using Mustafar.Models.Chat.Jinja;

namespace Mustafar.Tests.Llama.Jinja;

/// <summary>No template hangs, fills the memory, overflows the stack, or ends in anything but a <see cref="JinjaException"/>.</summary>
[TestFixture]
internal sealed class JinjaLimitTests
{
    private const string Doubling = "{% set ns = namespace(v='x') %}{% for i in range(200) %}{% set ns.v = ";

    [TestCase("{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}")]
    [TestCase(Doubling + "ns.v ~ ns.v %}{% endfor %}")]
    [TestCase(Doubling + "ns.v * 1000 %}{% endfor %}")]
    [TestCase(Doubling + "[ns.v, ns.v] %}{% endfor %}{{ ns.v }}")]
    [TestCase(Doubling + "[ns.v, ns.v] %}{% endfor %}{{ ns.v | tojson }}")]
    [TestCase(Doubling + "[ns.v, ns.v] %}{% endfor %}{% set b = ns.v %}{{ [ns.v] == [[b[0], b[1]]] }}")]
    [TestCase(Doubling + "ns.v.replace('x', 'xxxxxxxx') %}{% endfor %}")]
    [TestCase(Doubling + "(ns.v, ns.v) | join(ns.v) %}{% endfor %}")]
    [TestCase("{{ 'x' * 9223372036854775807 }}")]
    [TestCase("{{ 'x'.ljust(9223372036854775807) }}")]
    [TestCase("{{ '%9999999999d' % 1 }}")]
    [TestCase("{{ 2 ** 64 }}")]
    [TestCase("{{ 9223372036854775808 }}")]
    [TestCase("{{ [1].9223372036854775808 }}")]
    [TestCase("{{ -9223372036854775807 - 2 }}")]
    [TestCase("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")]
    [TestCase("{% for i in [[1]] recursive %}{{ loop([i]) }}{% endfor %}")]
    public void AHostileTemplateIsRefused(string source) =>
        Assert.That(() => JinjaTemplate.Parse(source).Render(new Dictionary<string, object?>(), DateTime.Now), Throws.TypeOf<JinjaException>());

    [TestCase("(", ")")]
    [TestCase("[", "]")]
    [TestCase("not ", "")]
    [TestCase("-", "")]
    [TestCase("1 if 1 else ", "")]
    [TestCase("{1:", "}")]
    [TestCase("1 + ", "")]
    [TestCase("1 ~ ", "")]
    public void DeepNestingIsRenderedOrRefused(string open, string close)
    {
        string source = "{{ " + string.Concat(Enumerable.Repeat(open, 100_000)) + "1" + string.Concat(Enumerable.Repeat(close, 100_000)) + " }}";
        try
        {
            Assert.That(JinjaTemplate.Parse(source).Render(new Dictionary<string, object?>(), DateTime.Now), Is.Not.Empty);
        }
        catch (JinjaException exception)
        {
            Assert.That(exception.Message, Does.Contain("too deeply").Or.Contain("bad operand").Or.Contain("unhashable"));
        }
    }

    // Pieces of tags in any order, cut and repeated.
    [Test]
    public void NothingButJinjaExceptionsComesOutOfAnyText()
    {
        string[] pieces =
        [
            "{{", "}}", "{%", "%}", "{#", "#}", "-", "+", " if ", " for ", " in ", " set ", " else ", "endif", "endfor", "endset", "macro f(", ")",
            "(", "[", "]", "{", "}", ":", ",", ".", "|", "'", "\"", "\\", "a", "m", "loop", ".index", "1", "0", "9223372036854775807", "1e5", " is ", " not ", "defined",
            "==", "<", "**", "*", "/", "//", "%", "~", "=", "\n", "\r", " ", "raw", "endraw", "upper", "join", "map", "tojson", "split", "\ud83d", "👍", "\0",
            "{{ m }}", "{{ m[0].k }}", "{{ a | ", "{{ m | map('", "{% for i in m %}", "{% endfor %}", "{% if a %}", "{% endif %}", "range(", "namespace(", "'x'",
        ];
        Dictionary<string, object?> variables = new()
        {
            ["a"] = " x👍 ",
            ["m"] = JinjaValue.From(new object?[] { new Dictionary<string, object?> { ["k"] = 1, ["v"] = null }, 2.5, "s", true }),
        };
        const int seed = 5;
        Random random = new(seed);
        int rendered = 0;
        for (int i = 0; i < 60_000; i++)
        {
            string source = string.Concat(Enumerable.Range(0, random.Next(1, 14)).Select(_ => pieces[random.Next(pieces.Length)]));
            source = random.Next(2) == 0 ? source : "{{ " + source + " }}";
            try
            {
                JinjaTemplate.Parse(source).Render(variables, DateTime.Now);
                rendered++;
            }
            catch (JinjaException)
            {
                // The one kind of error.
            }
            catch (Exception exception)
            {
                Assert.Fail($"seed {seed}, text {i}: {source}\n{exception}");
            }
        }

        Assert.That(rendered, Is.GreaterThan(1000));
    }

    [Test]
    public void ErrorsTellTheLine() => Assert.That(
        () => JinjaTemplate.Parse("a\n{% if true %}\n{{ x.y }}{% endif %}").Render(new Dictionary<string, object?>(), DateTime.Now),
        Throws.TypeOf<JinjaException>().With.Property(nameof(JinjaException.Line)).EqualTo(3).And.Message.EqualTo("'x' is undefined."));

    [Test]
    public void RenderingCanBeCancelled() => Assert.That(
        () => JinjaTemplate.Parse("{% for i in range(100000) %}{{ i }}{% endfor %}").Render(new Dictionary<string, object?>(), DateTime.Now, new CancellationToken(true)),
        Throws.InstanceOf<OperationCanceledException>());
}
