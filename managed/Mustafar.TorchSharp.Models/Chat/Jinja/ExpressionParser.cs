using System.Globalization;
using System.Runtime.CompilerServices;

namespace Mustafar.Models.Chat.Jinja;

/// <summary>Reads expressions from tokens, with Jinja's precedence.</summary>
internal sealed class ExpressionParser(TokenReader tokens)
{
    private static readonly HashSet<string> s_comparisons = ["==", "!=", "<", "<=", ">", ">=", "in"];

    /// <summary>Fails if the parser's own calls are nested too deeply.</summary>
    public static void RequireStack(TokenReader tokens)
    {
        if (!RuntimeHelpers.TryEnsureSufficientExecutionStack())
        {
            throw tokens.Error("it is nested too deeply.");
        }
    }

    /// <summary>Reads an expression, or several separated by commas, which form a tuple.</summary>
    public Expression Tuple(bool allowsConditional = true)
    {
        Expression first = allowsConditional ? Expression() : Or();
        if (!tokens.Is(","))
        {
            return first;
        }

        List<Expression> items = [first];
        while (tokens.TrySkip(",") && !EndsTuple())
        {
            items.Add(allowsConditional ? Expression() : Or());
        }

        return new SequenceLiteral(items, isTuple: true);
    }

    /// <summary>Reads an expression.</summary>
    public Expression Expression()
    {
        RequireStack(tokens);
        Expression value = Or();
        while (tokens.TrySkip("if"))
        {
            Expression test = Or();
            value = new Conditional(test, value, tokens.TrySkip("else") ? Expression() : null);
        }

        return value;
    }

    /// <summary>Reads filters after a value.</summary>
    /// <param name="value">The value; a block's text if null, whose first filter has no bar.</param>
    public Filter FilterChain(Expression? value)
    {
        Filter? filter = null;
        bool isFirst = value is null && !tokens.Is("|");
        while (isFirst || tokens.TrySkip("|"))
        {
            isFirst = false;
            string name = DottedName();
            filter = new Filter(filter ?? value, name, tokens.Is("(") ? Arguments() : ArgumentList.None);
        }

        return filter!;
    }

    private bool EndsTuple() => tokens.Current.Kind is TokenKind.BlockEnd or TokenKind.VariableEnd or TokenKind.End || tokens.Is(")") || tokens.Is("]");

    private Expression Or()
    {
        Expression left = And();
        while (tokens.TrySkip("or"))
        {
            left = new Logical(isAnd: false, left, And());
        }

        return left;
    }

    private Expression And()
    {
        Expression left = Not();
        while (tokens.TrySkip("and"))
        {
            left = new Logical(isAnd: true, left, Not());
        }

        return left;
    }

    private Expression Not()
    {
        RequireStack(tokens);
        return tokens.TrySkip("not") ? new Unary("not", Not()) : Comparison();
    }

    private Expression Comparison()
    {
        Expression first = LeftToRight(["+", "-"], Concat);
        List<(string, Expression)> rest = [];
        while (true)
        {
            bool isNotIn = tokens.Is("not") && tokens.Following is { Kind: TokenKind.Name, Text: "in" };
            string op = tokens.Current.Text;
            if (isNotIn)
            {
                tokens.Take();
                op = "not in";
            }
            else if (!s_comparisons.Any(tokens.Is))
            {
                return rest.Count == 0 ? first : new Comparison(first, rest);
            }

            tokens.Take();
            rest.Add((op, LeftToRight(["+", "-"], Concat)));
        }
    }

    // All parts of a chain at once, so that a long one costs no more than its length.
    private Expression Concat()
    {
        Expression first = Product();
        if (!tokens.Is("~"))
        {
            return first;
        }

        List<Expression> parts = [first];
        while (tokens.TrySkip("~"))
        {
            parts.Add(Product());
        }

        return new Concatenation(parts);
    }

    private Expression Product() => LeftToRight(["*", "/", "//", "%"], () => LeftToRight(["**"], () => Unary(allowsFilter: true)));

    private Expression LeftToRight(string[] operators, Func<Expression> operand)
    {
        Expression left = operand();
        while (Array.Find(operators, tokens.Is) is string op)
        {
            tokens.Take();
            left = new Binary(op, left, operand());
        }

        return left;
    }

    private Expression Unary(bool allowsFilter)
    {
        RequireStack(tokens);
        Expression value = tokens.TrySkip("-") ? new Unary("-", Unary(allowsFilter: false))
            : tokens.TrySkip("+") ? new Unary("+", Unary(allowsFilter: false))
            : Primary();
        value = Postfix(value);
        while (allowsFilter)
        {
            if (tokens.Is("|"))
            {
                value = FilterChain(value);
            }
            else if (tokens.Is("is"))
            {
                value = TestOf(value);
            }
            else if (tokens.Is("("))
            {
                value = new Call(value, Arguments());
            }
            else
            {
                break;
            }
        }

        return value;
    }

    private Expression Primary()
    {
        Token token = tokens.Take();
        switch (token.Kind)
        {
            case TokenKind.Name:
                return token.Text switch
                {
                    "true" or "True" => new Constant(true),
                    "false" or "False" => new Constant(false),
                    "none" or "None" => new Constant(null),
                    _ => new Name(token.Text),
                };
            case TokenKind.String:
                string text = token.Text;
                while (tokens.Current.Kind == TokenKind.String)
                {
                    text += tokens.Take().Text;
                }

                return new Constant(text);
            case TokenKind.Integer:
                return Integer(token);
            case TokenKind.Float:
                return new Constant(double.Parse(token.Text, CultureInfo.InvariantCulture));
        }

        switch (token.Text)
        {
            case "(":
                Expression inner = tokens.Is(")") ? new SequenceLiteral([], isTuple: true) : Tuple();
                tokens.Expect(")");
                return inner;
            case "[":
                return new SequenceLiteral(Items("]", Expression), isTuple: false);
            case "{":
                return new DictLiteral(Items("}", () =>
                {
                    Expression key = Expression();
                    tokens.Expect(":");
                    return (key, Expression());
                }));
            default:
                throw new JinjaException($"unexpected {token}.", token.Line);
        }
    }

    private static Constant Integer(Token token) =>
        long.TryParse(token.Text, NumberStyles.None, CultureInfo.InvariantCulture, out long number)
            ? new Constant(number)
            : throw new JinjaException($"the integer {token.Text} has more than 64 bits.", token.Line);

    private List<T> Items<T>(string end, Func<T> read)
    {
        List<T> items = [];
        while (!tokens.TrySkip(end))
        {
            items.Add(read());
            if (!tokens.Is(end))
            {
                tokens.Expect(",");
            }
        }

        return items;
    }

    private Expression Postfix(Expression value)
    {
        while (true)
        {
            if (tokens.TrySkip("."))
            {
                Token token = tokens.Take();
                value = token.Kind switch
                {
                    TokenKind.Name => new Attribute(value, token.Text),
                    TokenKind.Integer => new Subscript(value, Integer(token)),
                    _ => throw new JinjaException($"expected a name after '.', but got {token}.", token.Line),
                };
            }
            else if (tokens.TrySkip("["))
            {
                value = Brackets(value);
            }
            else if (tokens.Is("("))
            {
                value = new Call(value, Arguments());
            }
            else
            {
                return value;
            }
        }
    }

    private Expression Brackets(Expression target)
    {
        Expression? from = tokens.Is(":") ? null : Tuple();
        if (!tokens.TrySkip(":"))
        {
            tokens.Expect("]");
            return new Subscript(target, from!);
        }

        Expression? to = tokens.Is(":") || tokens.Is("]") ? null : Expression();
        Expression? step = tokens.TrySkip(":") && !tokens.Is("]") ? Expression() : null;
        tokens.Expect("]");
        return new Slice(target, from, to, step);
    }

    private ArgumentList Arguments()
    {
        List<(Expression, bool)> positional = [];
        List<(string?, Expression)> named = [];
        tokens.Expect("(");
        while (!tokens.TrySkip(")"))
        {
            if (tokens.TrySkip("**"))
            {
                named.Add((null, Expression()));
            }
            else if (tokens.TrySkip("*"))
            {
                positional.Add((Expression(), true));
            }
            else if (tokens.Current.Kind == TokenKind.Name && tokens.Following is { Kind: TokenKind.Operator, Text: "=" })
            {
                string name = tokens.ExpectName();
                tokens.Expect("=");
                named.Add((name, Expression()));
            }
            else if (named.Count > 0)
            {
                throw tokens.Error("a positional argument follows a named one.");
            }
            else
            {
                positional.Add((Expression(), false));
            }

            if (!tokens.Is(")"))
            {
                tokens.Expect(",");
            }
        }

        return new ArgumentList(positional, named);
    }

    private Expression TestOf(Expression value)
    {
        tokens.Expect("is");
        bool isNegated = tokens.TrySkip("not");
        string name = DottedName();
        ArgumentList arguments = ArgumentList.None;
        if (tokens.Is("("))
        {
            arguments = Arguments();
        }
        else if (tokens.Is("is"))
        {
            throw tokens.Error("tests can't be chained with 'is'.");
        }
        else if ((tokens.Current.Kind is TokenKind.Name && !(tokens.Is("else") || tokens.Is("or") || tokens.Is("and") || tokens.Is("if") || tokens.Is("not") || tokens.Is("in")))
            || tokens.Current.Kind is TokenKind.String or TokenKind.Integer or TokenKind.Float || tokens.Is("[") || tokens.Is("{"))
        {
            arguments = new ArgumentList([(Postfix(Primary()), false)], []);
        }

        Expression test = new Test(value, name, arguments);
        return isNegated ? new Unary("not", test) : test;
    }

    private string DottedName()
    {
        string name = tokens.ExpectName();
        while (tokens.TrySkip("."))
        {
            name += "." + tokens.ExpectName();
        }

        return name;
    }
}
