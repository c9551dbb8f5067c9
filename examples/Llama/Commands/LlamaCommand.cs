using System.CommandLine;
using System.Numerics;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>A command of the program, with the options that all have.</summary>
internal abstract class LlamaCommand : Command
{
    private readonly CommonOptions _common = new();

    /// <summary>Describes a command.</summary>
    protected LlamaCommand(string name, string description)
        : base(name, description)
    {
        _common.AddTo(this);
    }

    /// <summary>Runs the command.</summary>
    /// <param name="arguments">The command line, without errors.</param>
    /// <param name="result">Standard output.</param>
    /// <param name="messages">Standard error.</param>
    /// <param name="showProgress">Whether standard error is a terminal.</param>
    public void Run(ParseResult arguments, TextWriter result, TextWriter messages, bool showProgress)
    {
        ConsoleOutput output = new(result, messages, _common.WantsJson(arguments), showProgress);
        Run(arguments, _common.Read(arguments), output);
    }

    /// <summary>Runs the command.</summary>
    protected abstract void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output);

    /// <summary>Gives the command its own options.</summary>
    protected void Add(params IEnumerable<Option> options)
    {
        foreach (Option option in options)
        {
            Options.Add(option);
        }
    }

    /// <summary>The value of an option that must be above 0.</summary>
    /// <exception cref="CommandException">It is not.</exception>
    protected static T Positive<T>(ParseResult arguments, Option<T> option)
        where T : struct, INumber<T> => CommandOption.Positive(option.Name, arguments.GetValue(option));
}
